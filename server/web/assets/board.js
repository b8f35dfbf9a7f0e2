// The dispatch board: rows come in a snapshot and then change by change, over one connection;
// lanes.js draws them.

import { connect } from '../client.js';
import { announce, badge, byId, everySecond, fetchState, formatAge, formatNumber, keyOf, messageOf, problemOf, say, workerLinks } from './page.js';
import { boardFilter } from './filter.js';
import { lanes } from './lanes.js';

/** @type {Map<string, any>} */ let jobs = new Map();
/** @type {Map<any, any>} */ let customers = new Map();
const draw = lanes(byId('lanes'));
const find = byId('find');
let quiet = true, drawing = 0, known = false;

function redraw() {
  // No frames while the page is hidden; the rows go on, and it is drawn when seen again.
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = (job) => {
      if (!words.length) return true;
      const customer = customers.get(job.customer_id);
      const text = `${job.title} ${job.address} ${job.technician ?? ''} ${customer?.name ?? ''} ${customer?.city ?? ''} p${job.priority} #${job.id}`.toLowerCase();
      return words.every((w) => text.includes(w));
    };
    draw(jobs, customers, wanted, filter.has, quiet);
    quiet = false;
    const open = [...jobs.values()].filter((j) => j.status !== 'done' && j.status !== 'cancelled').length;
    byId('summary').toggleAttribute('data-some', jobs.size > 0);
    say(byId('summary'), jobs.size ? `${formatNumber(open)} open of ${formatNumber(jobs.size)} jobs`
      : !known ? '' : filter.any ? 'No job is like that now.' : 'No jobs yet. Cards appear here as rows change.');
  });
}

function notice(text) {
  byId('notice').hidden = !text;
  say(byId('notice'), text);
}

function apply(event) {
  if (event.topic === 'dispatch' && event.op === 'broadcast') return banner(event);
  const rows = event.topic === 'jobs' ? jobs : event.topic === 'customers' ? customers : null;
  if (!rows) return undefined;
  const key = rows === jobs ? keyOf(event) : (event.key ?? event.new ?? event.old)?.id;
  switch (event.op) {
    case 'insert':
    case 'enter': // an update moved the row into the filter
      rows.set(key, event.new);
      break;
    case 'update':
      // A changed key: the old one is among the former values.
      if (event.old && 'id' in event.old) rows.delete(rows === jobs ? JSON.stringify({ id: event.old.id }) : event.old.id);
      rows.set(key, event.new);
      break;
    case 'delete':
    case 'leave':
      rows.delete(key);
      break;
    case 'truncate':
      rows.clear();
      break;
    case 'bulk': // too many to be told one by one
      loadAgain(event.topic);
      break;
  }
  return redraw();
}

// Snapshots: a topic's rows come in pages, and stand in the place of what was there when all of
// them have come.
const coming = new Map();
function takeRows({ topic, page, rows, more }) {
  if (topic !== 'jobs' && topic !== 'customers') return;
  if (page === 1) coming.set(topic, new Map());
  const next = coming.get(topic);
  for (const row of rows) next.set(topic === 'jobs' ? JSON.stringify({ id: row.id }) : row.id, row);
  if (more) return;
  coming.delete(topic);
  if (topic === 'jobs') jobs = next;
  else customers = next;
  known = quiet = true;
  redraw();
}

// A burst of bulk statements is loaded once, and once more for those that came meanwhile.
const loading = new Map();
async function loadAgain(topic) {
  if (loading.has(topic)) return loading.set(topic, 'again');
  do {
    loading.set(topic, 'now');
    await subscribe(topic === 'jobs' ? shown : topic);
  } while (loading.get(topic) === 'again');
  return loading.delete(topic);
}

async function subscribe(topic) {
  try {
    await connection.subscribe(topic, { snapshot: true });
    notice('');
  } catch (error) {
    notice(`The worker does not give ${topic}: ${error.message}`);
  }
}

const filter = boardFilter(() => {
  const next = filter.subscription;
  if (next === shown) return;
  connection.unsubscribe(shown);
  shown = next;
  quiet = true;
  redraw();
  subscribe(shown);
});
let shown = filter.subscription;

const status = badge();
const connection = connect({
  url: '/ws/dispatch',
  topics: [shown, 'customers', 'dispatch'],
  snapshot: true,
  onEvent: apply,
  onRows: takeRows,
  onState: status.onState,
});
status.follow(connection);
fetchState().then((demo) => {
  if (!demo) return;
  workerLinks(demo.workers, demo.worker);
  drawSimulator(demo.simulator);
}).catch(() => {});

// The banner.
let bannerSince = 0;
function banner(event) {
  const text = messageOf(event.data);
  const root = byId('banner');
  say(byId('banner-text'), text);
  root.hidden = false;
  bannerSince = Date.now();
  drawBannerAge();
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) {
    root.animate([{ opacity: 0, transform: 'translateY(-6px)' }, { opacity: 1, transform: 'none' }], { duration: 260, easing: 'ease-out' });
  }
  announce(`Broadcast: ${text}`);
}
function drawBannerAge() {
  if (!bannerSince) return;
  const age = formatAge(Date.now() - bannerSince);
  say(byId('banner-age'), age === 'now' ? 'just now' : `${age} ago`);
}
everySecond(drawBannerAge);
byId('banner-close').addEventListener('click', () => {
  byId('banner').hidden = true;
  byId('message').focus();
});

// The box to send one.
byId('send').addEventListener('submit', async (submit) => {
  submit.preventDefault();
  const box = byId('message');
  const message = box.value.trim();
  if (!message) return box.focus();
  const button = byId('send').querySelector('button');
  button.disabled = true;
  try {
    const answer = await fetch('/api/dispatch/broadcast', {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ message }),
    });
    if (!answer.ok) throw new Error(await problemOf(answer));
    box.value = '';
    notice('');
  } catch (error) {
    notice(`The broadcast was not sent: ${error.message}`);
    announce(`The broadcast was not sent: ${error.message}`);
  } finally {
    button.disabled = false;
  }
  return undefined;
});

// The demo's simulator.
const simulator = byId('simulator');
function drawSimulator(now) {
  simulator.hidden = !now;
  if (!now) return;
  simulator.dataset.paused = String(Boolean(now.paused));
  say(simulator, now.paused ? 'Resume simulator' : 'Pause simulator');
}
simulator.addEventListener('click', async () => {
  const answer = await fetch('/demo/simulator', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ paused: simulator.dataset.paused !== 'true' }),
  }).catch(() => null);
  if (answer?.ok) drawSimulator(await answer.json());
  else notice('The simulator did not answer.');
});

find.addEventListener('input', () => {
  quiet = true;
  redraw();
});

redraw();

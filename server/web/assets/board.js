// The dispatch board: rows come in a snapshot and then change by change, over one connection;
// lanes.js draws them.

import { connect } from '../client.js';
import { announce, badge, byId, everySecond, fetchState, formatAge, formatNumber, messageOf, problemOf, say, workerLinks } from './page.js';
import { boardFilter } from './filter.js';
import { lanes } from './lanes.js';

let jobs = new Map(), customers = new Map();
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

/** A topic's rows, as they are now: from the snapshot and every transaction after it. */
function rowsOf(topic, rows) {
  if (topic === 'jobs') jobs = new Map(rows.map((job) => [String(job.id), job]));
  else if (topic === 'customers') customers = new Map(rows.map((c) => [c.id, c]));
  known = true;
  redraw();
}

const filter = boardFilter(async () => {
  const next = filter.subscription;
  if (next === shown) return;
  connection.unsubscribe(shown);
  shown = next;
  quiet = true;
  redraw();
  try {
    await connection.subscribe(next, { snapshot: true });
    notice('');
  } catch (error) {
    if (next === shown) notice(`The worker does not give these jobs: ${error.message}`);
  }
});
let shown = filter.subscription;

const status = badge();
const connection = connect({
  url: '/ws/dispatch',
  topics: [shown, 'customers', 'dispatch'],
  snapshot: true,
  onSnapshot: () => { quiet = true; },
  onRows: rowsOf,
  onEvent: (event) => event.topic === 'dispatch' && event.op === 'broadcast' && banner(event),
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

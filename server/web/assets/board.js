// The dispatch board: rows come from the application's state and from events; lanes.js
// draws them.

import { connect } from '../client.js';
import {
  announce, badge, byId, everySecond, formatAge, formatNumber, keyOf, messageOf, problemOf, say, stateLoader, workerLinks,
} from './page.js';
import { lanes } from './lanes.js';

/** @type {Map<string, any>} */ const jobs = new Map();
/** @type {Map<any, any>} */ const customers = new Map();
const draw = lanes(byId('lanes'));
const filter = byId('filter');
let quiet = true, drawing = 0, application = false, known = false;

function redraw() {
  // No frames while the page is hidden; the rows go on, and it is drawn when seen again.
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = (job) => {
      if (!words.length) return true;
      const customer = customers.get(job.customer_id);
      const text = `${job.title} ${job.address} ${job.technician ?? ''} ${customer?.name ?? ''} ${customer?.city ?? ''} p${job.priority} #${job.id}`.toLowerCase();
      return words.every((w) => text.includes(w));
    };
    draw(jobs, customers, wanted, quiet);
    quiet = false;
    const open = [...jobs.values()].filter((j) => j.status !== 'done' && j.status !== 'cancelled').length;
    byId('summary').toggleAttribute('data-some', jobs.size > 0);
    say(byId('summary'), jobs.size ? `${formatNumber(open)} open of ${formatNumber(jobs.size)} jobs`
      : known ? 'No jobs yet. Cards appear here as rows change.' : '');
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
      rows.set(key, event.new);
      break;
    case 'update':
      // A changed key: the old one is among the former values.
      if (event.old && 'id' in event.old) rows.delete(rows === jobs ? JSON.stringify({ id: event.old.id }) : event.old.id);
      rows.set(key, event.new);
      break;
    case 'delete':
      rows.delete(key);
      break;
    case 'truncate':
      rows.clear();
      break;
    case 'bulk':
      if (application) state.load();
      else notice(`One ${event.statement} touched ${formatNumber(event.rows ?? 0)} rows of ${event.topic} at once; cards may be out of date until their rows change again.`);
      break;
  }
  return redraw();
}

const state = stateLoader((now, meanwhile) => {
  if (now) {
    application = true;
    quiet = true;
    jobs.clear();
    customers.clear();
    for (const c of now.customers ?? []) customers.set(c.id, c);
    for (const j of now.jobs ?? []) jobs.set(JSON.stringify({ id: j.id }), j);
    workerLinks(now.workers, now.worker);
    drawSimulator(now.simulator);
    notice('');
  }
  known = true;
  for (const event of meanwhile) apply(event);
  redraw();
});

const status = badge();
const connection = connect({
  url: '/ws/dispatch',
  topics: ['jobs', 'customers', 'dispatch'],
  onEvent: (event) => event.op === 'broadcast' ? apply(event) : state.hold(event) || apply(event),
  onReady: (ready) => ready.resumed || state.load(),
  onReset: () => {
    // What was drawn may be wrong now; without an application side, begin anew.
    if (!application) {
      jobs.clear();
      customers.clear();
      redraw();
    }
    state.load();
  },
  onState: status.onState,
});
status.follow(connection);

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

filter.addEventListener('input', () => {
  quiet = true;
  redraw();
});

redraw();

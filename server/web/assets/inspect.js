// The operator's view: what every worker says of itself, and the events as they come.

import { connect } from '../client.js';
import { badge, byId, el, everySecond, fetchState, formatAge, formatClockSeconds, formatNumber, problemOf, say, workerLinks } from './page.js';

const KEPT = 400; // rows of the stream
const POLL = 5000;

// Workers. The answer is read leniently: a field that a worker does not give is a dash.
const pick = (o, ...names) => names.map((n) => o?.[n]).find((v) => v !== undefined && v !== null);
const flag = (value, yes, no) => (value === undefined ? el('span.quiet', {}, '–') : el(value ? 'span.yes' : 'span.no', {}, value ? yes : no));
const amount = (value) => (Array.isArray(value) ? formatNumber(value.length) : typeof value === 'number' ? formatNumber(value) : '–');
let asked = 0, asking = false, trouble = '', alive;

function workersOf(body) {
  const list = pick(body, 'workers', 'answers');
  if (Array.isArray(list) && list.every((w) => w && typeof w === 'object')) return list;
  return [pick(body, 'local', 'this') ?? body];
}

async function refresh() {
  if (asking) return;
  asking = true;
  try {
    const answer = await fetch('/api/dispatch/status', { cache: 'no-store' });
    if (!answer.ok) throw new Error(await problemOf(answer));
    const body = await answer.json();
    const workers = workersOf(body);
    alive = pick(body, 'alive') ?? workers.length;
    trouble = workers.length < alive ? `${workers.length} of ${alive} workers answered` : '';
    byId('status').tBodies[0].replaceChildren(...workers.map((w) => {
      const sequencing = pick(w, 'sequencing');
      return el('tr', {},
        el('td', {}, el('b', {}, String(pick(w, 'worker', 'name') ?? '–'))),
        el('td', {}, flag(pick(w, 'connected'), 'connected', 'lost')),
        el('td.num', {}, amount(pick(w, 'boards'))),
        el('td.num', {}, amount(pick(w, 'streams'))),
        el('td.num', {}, amount(pick(w, 'lagging'))),
        el('td.mono', {}, String(pick(w, 'head', 'position') ?? '–')),
        el('td', {}, sequencing ? el('span.yes', {}, 'yes') : el('span.quiet', {}, sequencing === undefined ? '–' : 'no')));
    }));
    asked = Date.now();
  } catch (error) {
    trouble = `No answer: ${error.message}`;
  } finally {
    asking = false;
    note();
  }
}
function note() {
  const when = asked ? `asked ${formatAge(Date.now() - asked) === 'now' ? 'just now' : `${formatAge(Date.now() - asked)} ago`}` : '';
  say(byId('status-note'), [trouble || (asked ? `${alive} alive` : ''), when].filter(Boolean).join(', '));
}
byId('status-refresh').addEventListener('click', refresh);
let timer = 0;
const poll = () => {
  clearInterval(timer);
  timer = 0;
  if (!byId('status-auto').checked || document.hidden) return;
  refresh();
  timer = setInterval(refresh, POLL);
};
byId('status-auto').addEventListener('change', poll);
document.addEventListener('visibilitychange', poll);
refresh();
fetchState().then((s) => s && workerLinks(s.workers, s.worker)).catch(() => {});

// Events. Rows wait for the next frame: a burst is drawn once.
const body = byId('events').tBodies[0];
let paused = false, drawing = 0, total = 0, lastSecond = 0;
/** @type {any[]} */ let pending = [];

function row(event) {
  const json = JSON.stringify(event.data ?? (event.new || event.old
    ? { ...(event.new && { new: event.new }), ...(event.old && { old: event.old }) }
    : event.error ? { error: event.error } : { statement: event.statement, rows: event.rows }));
  const at = new Date(event.at);
  return el('tr', {},
    el('td.mono', {}, Number.isNaN(at.getTime()) ? '–' : formatClockSeconds(at)),
    el('td', {}, event.topic),
    el('td', {}, el('span.op', { 'data-op': event.op }, event.op)),
    el('td.mono', {}, event.key ? Object.values(event.key).map(String).join(', ') : '–'),
    el('td.mono', {}, event.id ?? 'none', event.more ? el('span.quiet', { title: 'further events of this transaction follow' }, ' +') : null),
    el('td.json', {}, json));
}
function draw() {
  drawing = 0;
  const rows = pending.slice(-KEPT).reverse().map(row);
  pending = [];
  body.prepend(...rows);
  while (body.children.length > KEPT) body.lastElementChild.remove();
  byId('events-empty').hidden = body.children.length > 0;
}
const show = () => {
  if (!paused && pending.length && !drawing) drawing = requestAnimationFrame(draw);
};
body.addEventListener('click', (e) => {
  if (!getSelection()?.toString()) e.target.closest('tr')?.classList.toggle('open');
});

everySecond(() => {
  const perSecond = total - lastSecond;
  lastSecond = total;
  say(byId('rate'), `${formatNumber(total)} events, ${formatNumber(perSecond)}/s${paused ? `, paused with ${formatNumber(pending.length)} waiting` : ''}`);
  note();
});
byId('pause').addEventListener('click', () => {
  paused = !paused;
  byId('pause').setAttribute('aria-pressed', String(paused));
  say(byId('pause'), paused ? 'Go on' : 'Pause');
  show();
});
byId('clear').addEventListener('click', () => {
  pending = [];
  body.replaceChildren();
  byId('events-empty').hidden = false;
});

const status = badge();
// A filter may have commas too, between brackets.
const topicsOf = (text) => [...new Set(text.split(/,(?![^()]*\))/).map((t) => t.trim()).filter(Boolean))];
let topics = topicsOf(byId('topic-list').value);
const connection = connect({
  topics,
  onEvent(event) {
    total++;
    pending.push(event);
    if (pending.length > 2 * KEPT) pending = pending.slice(-KEPT);
    show();
  },
  onState: status.onState,
});
status.follow(connection);
byId('topics').addEventListener('submit', (e) => {
  e.preventDefault();
  const next = topicsOf(byId('topic-list').value);
  const more = next.filter((t) => !topics.includes(t)), less = topics.filter((t) => !next.includes(t));
  topics = next;
  if (more.length) connection.subscribe(more);
  if (less.length) connection.unsubscribe(less);
});

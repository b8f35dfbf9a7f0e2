// The dashboard: results of live queries, over SSE. It asks for nothing. The newest results
// come on connecting, and each is replaced by the next when something has changed.

import { connect } from '../client.js';
import { announce, badge, byId, el, everySecond, formatAge, formatClock, formatNumber, formatPrice, say, svg, toCents } from './page.js';
import { dial, LANES } from './lanes.js';
import { barChart } from './chart.js';

const WINDOW = 5 * 60_000; // what a sparkline shows
const DAYS = 14; // what the chart shows

/** How old a value is, and whether it may be out of date: `root` says both. */
function ageOf(root, text) {
  let at = 0, error = '';
  const draw = () => {
    const old = error || outOfTouch;
    root.toggleAttribute('data-stale', Boolean(at && old));
    const age = formatAge(Date.now() - at);
    say(text, !at ? error && `no value: ${error}` : `${old ? 'stale, ' : ''}${age === 'now' ? 'just now' : `${age} ago`}`);
    text.title = !at ? '' : `${old ? `May be out of date: ${old}. ` : ''}Changed at ${new Date(at).toLocaleTimeString('en-GB')}`;
  };
  everySecond(draw);
  return {
    draw,
    changed(time) { at = time; },
    stale(why) { error = why; },
  };
}
let outOfTouch = ''; // why no news may come
const ages = [];

/** One big number with a sparkline. */
function figure(name, title, format) {
  const age = el('span.age');
  const value = el('data.figure-value', {}, '–');
  const delta = el('p.figure-delta');
  const area = svg('path', { class: 'spark-area' });
  const line = svg('path', { class: 'spark-line' });
  const dot = svg('circle', { class: 'spark-dot', r: 4 });
  const chart = svg('svg', { class: 'spark', 'aria-hidden': 'true' }, area, line, dot);
  const root = el('section.figure', { 'data-figure': name, 'aria-labelledby': `figure-${name}` },
    el('div.figure-head', {}, el('h2', { id: `figure-${name}` }, title), age), value, delta, chart);
  byId('figures').append(root);
  const old = ageOf(root, age);
  ages.push(old);

  let now, start, since = 0;
  /** @type {{t: number, v: number}[]} */ let points = [];

  const draw = () => {
    const t = Date.now();
    // Keep one point from before the window, so that the line begins at its left edge.
    while (points.length > 1 && points[1].t < t - WINDOW) points.shift();
    const { width, height } = chart.getBoundingClientRect();
    if (!width || !points.length) return;
    const from = Math.max(t - WINDOW, points[0].t), span = Math.max(t - from, 1000);
    const all = points.map((p) => p.v);
    const low = Math.min(...all), high = Math.max(...all);
    // One job more among a hundred is a small step, and should look like one.
    const range = Math.max(high - low, Math.abs(high) * 0.03);
    const right = width - 14, top = 10, bottom = height - 12;
    const x = (at) => (right * (Math.max(at, from) - from)) / span;
    const y = (v) => (range ? bottom - ((v - low) / range) * (bottom - top) : bottom);
    let d = `M0 ${y(points[0].v).toFixed(1)}`;
    for (const p of points.slice(1)) d += `H${x(p.t).toFixed(1)}V${y(p.v).toFixed(1)}`;
    d += `H${right.toFixed(1)}`;
    line.setAttribute('d', d);
    area.setAttribute('d', `${d}V${height}H0Z`);
    dot.setAttribute('cx', right);
    dot.setAttribute('cy', y(now).toFixed(1));
  };
  new ResizeObserver(draw).observe(chart);
  everySecond(draw);

  return {
    stale: old.stale,
    set(next, at) {
      if (next === now) return old.draw();
      now = next;
      old.changed(at);
      if (start === undefined) [start, since] = [next, Date.now()];
      points.push({ t: points.length ? at : Math.min(at, Date.now()), v: next });
      value.value = String(next);
      say(value, format(next));
      const d = toCents(next) - toCents(start);
      say(delta, d ? `${d > 0 ? '+' : '−'}${format(Math.abs(d) / 100)} since ${formatClock(since)}` : `unchanged since ${formatClock(since)}`);
      old.draw();
      return draw();
    },
  };
}

const money = (amount) => formatPrice(toCents(amount), 0);
const figures = {
  revenue_today: figure('revenue_today', 'Revenue today', money),
  open_jobs: figure('open_jobs', 'Open jobs', formatNumber),
  customers: figure('customers', 'Customers', formatNumber),
  invoices_today: figure('invoices_today', 'Invoices today', formatNumber),
};

/** A panel's age and mark. */
function panel(id) {
  const root = byId(id);
  const old = ageOf(root, root.querySelector('.age'));
  ages.push(old);
  return old;
}

// Jobs by status.
const jobs = panel('jobs');
const flow = LANES.map((lane) => {
  const bar = el('div.flow-bar');
  const n = el('data.flow-count', {}, '–');
  byId('flow').append(el('li.flow-row', { 'data-status': lane.status },
    el('span.flow-name', {}, dial(lane.share), lane.title), el('div.flow-track', { 'aria-hidden': 'true' }, bar), n));
  return { ...lane, bar, n };
});
function drawFlow(rows) {
  const counts = new Map(rows.map((row) => [row.status, Number(row.jobs)]));
  const most = Math.max(1, ...counts.values());
  for (const f of flow) {
    const n = counts.get(f.status) ?? 0;
    f.bar.style.transform = `scaleX(${n / most})`;
    f.n.value = String(n);
    say(f.n, formatNumber(n));
  }
}

// Revenue by day, in UTC's days as the table has them: the last two weeks that have one.
const days = panel('days');
const chart = barChart(byId('chart'));
const weekday = new Intl.DateTimeFormat('en-GB', { weekday: 'short', timeZone: 'UTC' });
const date = new Intl.DateTimeFormat('en-GB', { weekday: 'long', day: 'numeric', month: 'long', timeZone: 'UTC' });
function drawDays(rows) {
  const byDay = new Map(rows.map((row) => [row.issued_on, row]));
  const last = rows.reduce((a, row) => (row.issued_on > a ? row.issued_on : a), '');
  const shown = [];
  // A day without an invoice has no row, and a place in the chart.
  for (let back = DAYS - 1; last && back >= 0; back--) {
    const day = new Date(Date.parse(last) - back * 864e5);
    const row = byDay.get(day.toISOString().slice(0, 10));
    shown.push({ day, value: Number(row?.revenue ?? 0), invoices: Number(row?.invoices ?? 0) });
  }
  chart(shown.map(({ day, value }, i) => ({
    value, label: weekday.format(day), note: String(day.getUTCDate()), text: formatPrice(toCents(value), 0), last: i === shown.length - 1,
    title: `${date.format(day)}: ${formatPrice(toCents(value))}`,
  })));
  byId('days-rows').replaceChildren(...shown.map(({ day, value, invoices }) => el('tr', {},
    el('th', { scope: 'row' }, date.format(day)), el('td', {}, el('data', { value: String(value), 'data-day': day.toISOString().slice(0, 10) }, formatPrice(toCents(value)))),
    el('td', {}, String(invoices)))));
}

// Each topic, and what its result moves.
const topics = {
  stats: {
    parts: Object.values(figures),
    draw([row], at) {
      for (const [name, f] of Object.entries(figures)) if (row?.[name] !== undefined) f.set(Number(row[name]), at);
    },
  },
  jobs_by_status: {
    parts: [jobs],
    draw(rows, at) {
      drawFlow(rows);
      jobs.changed(at);
    },
  },
  revenue_by_day: {
    parts: [days],
    draw(rows, at) {
      drawDays(rows);
      days.changed(at);
    },
  },
};
/** @type {Map<string, string>} topics that came, and why a value is stale */
const known = new Map(), drawn = new Set();

function notice() {
  const missing = Object.keys(topics).filter((t) => !known.has(t));
  const stale = [...known].filter(([, error]) => error);
  const text = [
    missing.length && `No live query is called ${missing.join(' or ')} here. Name one with trumpet.live_query, and it appears.`,
    ...stale.map(([topic, error]) => `${topic} is stale: ${error}.`),
  ].filter(Boolean).join(' ');
  byId('notice').hidden = !text;
  say(byId('notice'), text);
}

function take(event) {
  const topic = topics[event.topic];
  if (!topic || event.op !== 'result') return;
  const error = event.stale ? event.error || 'it could not be brought up to date' : '';
  if (error && known.get(event.topic) !== error) announce(`${event.topic} is stale: ${error}`);
  else if (!error && known.get(event.topic)) announce(`${event.topic} is up to date again`);
  known.set(event.topic, error);
  for (const part of topic.parts) part.stale(error);
  // A value that became stale is as old as it was.
  const at = Math.min(Date.parse(event.at) || Date.now(), Date.now());
  if (event.data && !(error && drawn.has(event.topic))) {
    drawn.add(event.topic);
    topic.draw(event.data, at);
  }
  for (const age of ages) age.draw();
}

const status = badge();
let ready = false;
status.follow(connect({
  transport: 'sse',
  topics: Object.keys(topics),
  onEvent(event) {
    take(event);
    if (ready) notice();
  },
  onReady() {
    ready = true;
    say(byId('basis'), 'Every number comes by itself when it changes; nothing is asked for.');
    notice();
  },
  onState(state, info) {
    outOfTouch = state === 'live' ? '' : state === 'stale' ? 'the worker has lost Postgres' : 'there is no connection';
    for (const age of ages) age.draw();
    status.onState(state, info);
  },
}));

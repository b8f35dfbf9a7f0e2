// The dashboard: totals counted from events, over SSE. Where the application gives its
// rows they are the baseline; live queries will make both unnecessary.

import { connect } from '../client.js';
import {
  announce, badge, byId, el, everySecond, formatAge, formatClock, formatNumber, formatPrice, keyOf, messageOf, say,
  stateLoader, svg, toCents, workerLinks,
} from './page.js';
import { dial, LANES } from './lanes.js';

const WINDOW = 5 * 60_000; // what a sparkline shows
const FEED = 14; // rows; the sheet keeps their place free

/** One big number with a sparkline. */
function figure(name, title, format) {
  const age = el('span.figure-age');
  const value = el('p.figure-value', {}, '–');
  const delta = el('p.figure-delta');
  const area = svg('path', { class: 'spark-area' });
  const line = svg('path', { class: 'spark-line' });
  const dot = svg('circle', { class: 'spark-dot', r: 4 });
  const chart = svg('svg', { class: 'spark', 'aria-hidden': 'true' }, area, line, dot);
  byId('figures').append(el('section.figure', { 'data-figure': name, 'aria-labelledby': `figure-${name}` },
    el('div.figure-head', {}, el('h2', { id: `figure-${name}` }, title), age), value, delta, chart));

  let now = 0, start = 0, changed = 0;
  /** @type {{t: number, v: number}[]} */ let points = [];

  const draw = () => {
    const t = Date.now();
    // Keep one point from before the window, so that the line begins at its left edge.
    while (points.length > 1 && points[1].t < t - WINDOW) points.shift();
    say(age, changed ? `changed ${formatAge(t - changed) === 'now' ? 'just now' : `${formatAge(t - changed)} ago`}` : 'no change yet');
    const { width, height } = chart.getBoundingClientRect();
    if (!width || !points.length) return;
    const from = Math.max(t - WINDOW, points[0].t), span = Math.max(t - from, 1000);
    const all = points.map((p) => p.v);
    const low = Math.min(...all), high = Math.max(...all);
    // One job more among a hundred is a small step, and should look like one.
    const range = Math.max(high - low, baseline ? Math.abs(high) * 0.03 : 0);
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
    /** Begin anew from a total. */
    reset(total) {
      now = start = total;
      points = [{ t: Date.now(), v: total }];
      this.show();
    },
    set(total) {
      if (total === now) return;
      now = total;
      changed = Date.now();
      points.push({ t: changed, v: total });
      this.show();
    },
    get value() { return now; },
    show() {
      const d = now - start;
      // Without a baseline the number itself is the change.
      say(value, baseline ? format(now) : `${now > 0 ? '+' : now < 0 ? '−' : ''}${format(Math.abs(now))}`);
      say(delta, baseline ? (d ? `${d > 0 ? '+' : '−'}${format(Math.abs(d))} since ${formatClock(since)}` : `unchanged since ${formatClock(since)}`)
        : `change since ${formatClock(since)}`);
      draw();
    },
  };
}

let baseline = false, since = new Date(), uncounted = 0;
const rows = { jobs: new Map(), customers: new Map() };
const byStatus = new Map();
const figures = {
  jobs: figure('jobs', 'Jobs', formatNumber),
  customers: figure('customers', 'Customers', formatNumber),
  revenue: figure('revenue', 'Revenue, done jobs', (cents) => formatPrice(cents, 0)),
};

const worth = (job) => (job?.status === 'done' ? toCents(job.price) : 0);

/** Puts a row in the place of another: all totals are made here. */
function replace(topic, before, after) {
  const n = (after ? 1 : 0) - (before ? 1 : 0);
  if (topic === 'customers') {
    figures.customers.set(figures.customers.value + n);
    return;
  }
  if (before) byStatus.set(before.status, (byStatus.get(before.status) ?? 0) - 1);
  if (after) byStatus.set(after.status, (byStatus.get(after.status) ?? 0) + 1);
  figures.jobs.set(figures.jobs.value + n);
  figures.revenue.set(figures.revenue.value + worth(after) - worth(before));
}

function count(event) {
  const known = rows[event.topic];
  if (!known) return;
  const key = keyOf(event);
  if (event.op === 'truncate') {
    known.clear();
    const emptied = event.topic === 'jobs' ? [figures.jobs, figures.revenue] : [figures.customers];
    if (event.topic === 'jobs') byStatus.clear();
    for (const f of emptied) baseline ? f.set(0) : f.reset(0);
    return;
  }
  if (event.op === 'bulk') {
    if (baseline) state.load();
    else {
      uncounted += event.rows ?? 0;
      drawBasis();
    }
    return;
  }
  // The row before: as this page knows it, else, without a baseline, as the event tells it.
  const before = known.get(key) ?? (baseline || event.op === 'insert' ? undefined
    : event.op === 'delete' ? event.old : { ...event.new, ...event.old });
  const after = event.op === 'delete' ? undefined : event.new;
  replace(event.topic, before, after);
  if (after) known.set(key, after);
  else known.delete(key);
}

function drawBasis() {
  const at = formatClock(since);
  say(byId('basis'), baseline
    ? `Totals from the application at ${at}, counted from events since; totals come with live queries.`
    : `Counted from events since ${at}; totals come with live queries.`);
  say(byId('flow-title'), baseline ? 'Where the jobs stand' : 'How the jobs moved');
  byId('notice').hidden = !uncounted;
  say(byId('notice'), uncounted ? `Bulk statements touched ${formatNumber(uncounted)} rows that are not counted here.` : '');
}

// Where the jobs stand.
const flow = LANES.map((lane) => {
  const bar = el('div.flow-bar');
  const n = el('span.flow-count', {}, '–');
  byId('flow').append(el('div.flow-row', { 'data-status': lane.status },
    el('span.flow-name', {}, dial(lane.share), lane.title), el('div.flow-track', {}, bar), n));
  return { ...lane, bar, n };
});
function drawFlow() {
  const most = Math.max(1, ...flow.map((f) => Math.abs(byStatus.get(f.status) ?? 0)));
  for (const f of flow) {
    const n = byStatus.get(f.status) ?? 0;
    f.bar.style.transform = `scaleX(${Math.max(0, n) / most})`;
    say(f.n, baseline || n <= 0 ? formatNumber(n).replace('-', '−') : `+${formatNumber(n)}`);
  }
}

// The pace: events in bars of five seconds, over the same window as the sparklines.
const STEP = 5000, BARS = WINDOW / STEP;
/** @type {Map<number, number>} */ const pace = new Map();
function drawPace() {
  const root = byId('pace'), { width, height } = root.getBoundingClientRect();
  if (!width) return;
  const current = Math.floor(Date.now() / STEP), each = width / BARS;
  for (const at of pace.keys()) if (at <= current - BARS) pace.delete(at);
  const most = Math.max(4, ...pace.values());
  const bars = [...pace].map(([at, n]) => svg('rect', {
    x: ((at - current + BARS - 1) * each).toFixed(1), width: Math.max(1, each - 1.5).toFixed(1), rx: 1.5,
    y: (height - (n / most) * height).toFixed(1), height: ((n / most) * height).toFixed(1),
  }));
  root.replaceChildren(svg('line', { x1: 0, x2: width, y1: height, y2: height }), ...bars);
  const total = [...pace.values()].reduce((a, b) => a + b, 0);
  say(byId('pace-note'), `${formatNumber(total)} ${total === 1 ? 'event' : 'events'} in the last 5 minutes`);
}
new ResizeObserver(drawPace).observe(byId('pace'));
everySecond(drawPace);

// The feed.
let fed = 0;
function describe(event) {
  const row = event.new ?? event.old ?? {};
  if (event.op === 'broadcast') return ['', messageOf(event.data)];
  if (event.op === 'bulk') return [event.topic, `${event.statement} of ${formatNumber(event.rows ?? 0)} rows`];
  if (event.op === 'truncate') return [event.topic, 'emptied'];
  const name = row.title ?? row.name ?? JSON.stringify(event.key);
  const title = (s) => LANES.find((l) => l.status === s)?.title ?? s;
  if (event.topic === 'jobs' && event.op === 'update' && event.old && 'status' in event.old) {
    return [name, `${title(event.old.status)} → ${title(row.status)}`];
  }
  if (event.op === 'update') return [name, Object.keys(event.old ?? {}).filter((k) => k !== 'updated_at').join(', ')];
  return [name, event.topic === 'jobs' ? title(row.status) : row.city ?? event.topic];
}
function feed(event) {
  const list = byId('feed');
  if (!fed++) list.replaceChildren();
  const [what, more] = describe(event);
  const at = new Date(event.at ?? Date.now());
  const text = el('span.feed-what', {}, what ? el('b', {}, String(what)) : null, what && more ? ' ' : null, more ? el('span', {}, String(more)) : null);
  text.title = text.textContent;
  list.prepend(el('li', {}, el('time', { datetime: at.toISOString() }, at.toLocaleTimeString('en-GB')),
    el('span.op', { 'data-op': event.op }, event.op), text));
  while (list.children.length > FEED) list.lastElementChild.remove();
}

function begin() {
  since = new Date();
  uncounted = 0;
  rows.jobs.clear();
  rows.customers.clear();
  byStatus.clear();
  for (const f of Object.values(figures)) f.reset(0);
}

const state = stateLoader((now, meanwhile) => {
  if (now) {
    baseline = true;
    begin();
    let revenue = 0;
    for (const c of now.customers ?? []) rows.customers.set(JSON.stringify({ id: c.id }), c);
    for (const j of now.jobs ?? []) {
      rows.jobs.set(JSON.stringify({ id: j.id }), j);
      byStatus.set(j.status, (byStatus.get(j.status) ?? 0) + 1);
      revenue += worth(j);
    }
    figures.jobs.reset(rows.jobs.size);
    figures.customers.reset(rows.customers.size);
    figures.revenue.reset(revenue);
    workerLinks(now.workers, now.worker);
  }
  for (const event of meanwhile) count(event);
  drawBasis();
  drawFlow();
});

const status = badge();
status.follow(connect({
  transport: 'sse',
  topics: ['jobs', 'customers', 'dispatch'],
  onEvent(event) {
    const at = Math.floor(Date.now() / STEP);
    pace.set(at, (pace.get(at) ?? 0) + 1);
    feed(event);
    if (event.op === 'broadcast') {
      if (event.topic === 'dispatch') announce(`Broadcast: ${messageOf(event.data)}`);
    } else if (!state.hold(event)) {
      count(event);
      drawFlow();
    }
  },
  onReady(ready) {
    if (ready.resumed) return;
    if (!baseline) {
      begin();
      drawBasis();
      drawFlow();
    }
    state.load();
  },
  onReset() {
    announce('Some events are missing; counting begins anew');
  },
  onState: status.onState,
}));

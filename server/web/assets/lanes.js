// The lanes of the board: cards by status, drawn anew from the rows once a frame at most.
// A card that changes its lane flies there; with prefers-reduced-motion it is just there.

import { el, svg, say, formatPrice, formatWhen, toCents } from './page.js';

/** Status, title, and how far round the dial of a lane's sign goes. */
export const LANES = [
  { status: 'new', title: 'New', share: 0 },
  { status: 'scheduled', title: 'Scheduled', share: 0.25 },
  { status: 'en_route', title: 'En route', share: 0.5 },
  { status: 'on_site', title: 'On site', share: 0.75 },
  { status: 'done', title: 'Done', share: 1 },
  { status: 'cancelled', title: 'Cancelled', share: -1, folds: true },
];

const SHOWN = 60; // cards a lane draws; the rest is a number
const FLIGHTS = 24; // more moves than that in one frame are a bulk: no animation
const still = matchMedia('(prefers-reduced-motion: reduce)');

const byDue = (a, b) =>
  (a.priority ?? 9) - (b.priority ?? 9)
  || Date.parse(a.scheduled_for ?? 0) - Date.parse(b.scheduled_for ?? 0)
  || a.id - b.id;
const byChange = (a, b) => Date.parse(b.updated_at ?? 0) - Date.parse(a.updated_at ?? 0) || b.id - a.id;

/** A lane's sign: a dial that fills as the work goes on. */
export function dial(share) {
  const r = 3.1, all = 2 * Math.PI * r;
  const root = svg('svg', { viewBox: '0 0 16 16', class: 'dial', 'aria-hidden': 'true' },
    svg('circle', { cx: 8, cy: 8, r: 6.2, class: 'dial-ring' }));
  if (share < 0) root.append(svg('path', { d: 'm5.6 5.6 4.8 4.8m0-4.8-4.8 4.8', class: 'dial-cross' }));
  else if (share > 0) {
    root.append(svg('circle', {
      cx: 8, cy: 8, r, class: 'dial-fill', transform: 'rotate(-90 8 8)', 'stroke-dasharray': `${all * share} ${all}`,
    }));
  }
  return root;
}

/** Two letters and one of eight tints for a technician. */
export function avatar(name) {
  const letters = name.split(/\s+/).map((w) => w[0] ?? '').slice(0, 2).join('').toUpperCase();
  let hash = 0;
  for (const c of name) hash = (hash * 31 + c.codePointAt(0)) >>> 0;
  return el('span.avatar', { 'data-tint': hash % 8, 'aria-hidden': 'true' }, letters);
}

function fill(card, job, customer) {
  const priority = Number(job.priority);
  const when = job.scheduled_for ? formatWhen(job.scheduled_for) : '';
  card.replaceChildren(...[
    el('div.card-top', {},
      el('h3', {}, String(job.title ?? `Job ${job.id}`)),
      priority === 1 ? el('span.priority', { 'data-priority': 1, title: 'Priority 1' }, 'P1')
        : priority === 2 ? el('span.priority', { 'data-priority': 2, title: 'Priority 2' }, 'P2') : null),
    el('p.card-who', {}, [customer?.name, customer?.city].filter(Boolean).join(', ') || (job.customer_id ? `Customer ${job.customer_id}` : '')),
    el('div.card-where', {}, el('p', {}, String(job.address ?? '')), when ? el('time', { datetime: job.scheduled_for }, when) : null),
    el('div.card-foot', {},
      job.technician
        ? el('span.technician', {}, avatar(String(job.technician)), el('span', {}, String(job.technician)))
        : el('span.technician.nobody', {}, 'Unassigned'),
      job.price === null || job.price === undefined ? null : el('span.price', {}, formatPrice(toCents(job.price)))),
  ].filter(Boolean));
}

/**
 * Draws the lanes into root.
 * @param {HTMLElement} root
 */
export function lanes(root) {
  /** @type {Map<string, {item: HTMLElement, card: HTMLElement, job: any, customer: any, status: string}>} */
  const cards = new Map();
  const columns = LANES.map((lane) => {
    const id = `lane-${lane.status}`;
    const count = el('span.count', {}, '0');
    const list = el('ul.cards', { 'aria-labelledby': id });
    const rest = el('p.rest', { hidden: true });
    const empty = el('p.empty', {}, 'Nothing here');
    const body = el('div.lane-body', {}, list, empty, rest);
    const head = el('h2', { id }, dial(lane.share), el('span.lane-title', {}, lane.title), count);
    const section = el('section.lane', { 'data-status': lane.status, 'aria-labelledby': id }, head, body);
    const column = { ...lane, section, list, count, rest, empty, body, folded: Boolean(lane.folds) };
    if (lane.folds) {
      const fold = el('button.fold', { type: 'button' });
      const drawFold = () => {
        section.toggleAttribute('data-folded', column.folded);
        fold.setAttribute('aria-expanded', String(!column.folded));
        fold.setAttribute('aria-label', `${column.folded ? 'Unfold' : 'Fold'} ${lane.title}`);
      };
      fold.append(...head.childNodes);
      head.append(fold);
      fold.addEventListener('click', () => {
        column.folded = !column.folded;
        drawFold();
      });
      drawFold();
    }
    root.append(section);
    return column;
  });

  // On a phone one lane fills the screen: a row of signs counts them all and leads there.
  const signs = el('nav.lane-nav', { 'aria-label': 'Lanes' });
  for (const column of columns) {
    column.sign = el('span', {}, '0');
    const button = el('button', { type: 'button', 'data-status': column.status }, column.title, ' ', column.sign);
    button.addEventListener('click', () => {
      column.section.scrollIntoView({ inline: 'start', block: 'nearest', behavior: still.matches ? 'auto' : 'smooth' });
    });
    signs.append(button);
  }
  root.before(signs);

  // One card of the board takes Tab; the arrow keys go on from there.
  let focusable = null;
  const rove = (card, move) => {
    if (focusable && focusable !== card) focusable.tabIndex = -1;
    focusable = card;
    if (!card) return;
    card.tabIndex = 0;
    if (move) {
      card.focus();
      card.scrollIntoView({ block: 'nearest', inline: 'nearest', behavior: still.matches ? 'auto' : 'smooth' });
    }
  };
  root.addEventListener('focusin', (e) => {
    const card = e.target.closest?.('.card');
    if (card) rove(card, false);
  });
  root.addEventListener('keydown', (e) => {
    const card = e.target.closest?.('.card');
    if (!card || e.altKey || e.ctrlKey || e.metaKey) return;
    const open = columns.filter((c) => !c.folded && c.list.children.length);
    const lane = open.findIndex((c) => c.list.contains(card));
    const siblings = [...(open[lane]?.list.children ?? [])];
    const at = siblings.indexOf(card.parentElement);
    let next;
    if (e.key === 'ArrowDown') next = siblings[at + 1];
    else if (e.key === 'ArrowUp') next = siblings[at - 1];
    else if (e.key === 'Home') next = siblings[0];
    else if (e.key === 'End') next = siblings.at(-1);
    else if (e.key === 'ArrowRight' || e.key === 'ArrowLeft') {
      const other = open[lane + (e.key === 'ArrowRight' ? 1 : -1)];
      next = other?.list.children[Math.min(at, other.list.children.length - 1)];
    } else return;
    e.preventDefault();
    if (next) rove(next.firstElementChild, true);
  });

  const cardOf = (key, job, customer) => {
    let entry = cards.get(key);
    if (!entry) {
      const card = el('article.card', { tabindex: -1 });
      entry = { item: el('li', {}, card), card, job: null, customer: null, status: '' };
      cards.set(key, entry);
    }
    if (entry.job !== job || entry.customer !== customer) {
      entry.changed = entry.job !== job;
      entry.job = job;
      entry.customer = customer;
      fill(entry.card, job, customer);
    }
    return entry;
  };

  /**
   * @param {Map<string, any>} jobs
   * @param {Map<any, any>} customers
   * @param {(job: any) => boolean} wanted
   * @param {(status: string) => boolean} has whether there is a lane for this status
   * @param {boolean} quiet draw without animation: the first time, after a reset
   */
  return function draw(jobs, customers, wanted, has, quiet) {
    const animate = !quiet && !still.matches && !document.hidden;
    const before = new Map();
    if (animate) for (const [key, { item, status }] of cards) before.set(key, { rect: item.getBoundingClientRect(), status });

    const active = document.activeElement;
    const lanesNow = new Map(columns.map((c) => [c.status, []]));
    for (const [key, job] of jobs) if (wanted(job)) lanesNow.get(job.status)?.push([key, job]);

    const shown = new Set();
    const moved = [];
    for (const column of columns) {
      const here = lanesNow.get(column.status);
      column.section.hidden = column.sign.parentElement.hidden = !has(column.status);
      const order = column.share === 1 || column.share < 0 ? byChange : byDue;
      here.sort((a, b) => order(a[1], b[1]));
      say(column.count, String(here.length));
      say(column.sign, String(here.length));
      column.empty.hidden = here.length > 0;
      column.rest.hidden = here.length <= SHOWN;
      say(column.rest, here.length > SHOWN ? `and ${here.length - SHOWN} more` : '');
      let cursor = column.list.firstElementChild;
      for (const [key, job] of here.slice(0, SHOWN)) {
        const entry = cardOf(key, job, customers.get(job.customer_id));
        shown.add(key);
        if (entry.item === cursor) cursor = cursor.nextElementSibling;
        else column.list.insertBefore(entry.item, cursor);
        entry.status = column.status;
        if (entry.changed) moved.push(key);
        entry.changed = false;
      }
    }
    for (const [key, entry] of cards) {
      if (shown.has(key)) continue;
      entry.item.remove();
      cards.delete(key);
      if (focusable === entry.card) rove(null, false);
    }
    if (!focusable) rove(root.querySelector('.card'), false);
    // Moving a node takes its focus; give it back.
    if (active !== document.activeElement && active instanceof HTMLElement && root.contains(active)) active.focus({ preventScroll: true });
    if (animate && moved.length <= FLIGHTS) settle(root, cards, before, new Set(moved));
  };
}

/** FLIP: every card is already where it belongs; let it travel there from where it was. */
function settle(root, cards, before, changed) {
  const timing = { duration: 520, easing: 'cubic-bezier(.2,.8,.2,1)' };
  const view = { top: 0, bottom: innerHeight, left: 0, right: innerWidth };
  const visible = (r) => r.width > 0 && r.bottom > view.top && r.top < view.bottom && r.right > view.left && r.left < view.right;
  const work = [];
  for (const [key, { item, card, status }] of cards) work.push({ key, item, card, status, to: item.getBoundingClientRect(), was: before.get(key) });
  for (const { key, item, card, status, to, was } of work) {
    if (changed.has(key)) glow(card);
    if (!visible(to) && !(was && visible(was.rect))) continue;
    if (!was) {
      if (to.width) item.animate([{ opacity: 0, transform: 'scale(.96)' }, { opacity: 1, transform: 'none' }], { ...timing, duration: 320 });
      continue;
    }
    const x = was.rect.left - to.left, y = was.rect.top - to.top;
    if (was.status !== status && was.rect.width && to.width) {
      fly(root, item, card, was.rect, to, timing);
    } else if (to.width && (Math.abs(x) > 1 || Math.abs(y) > 1)) {
      item.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: 'none' }], timing);
    }
  }
}

// Lanes scroll, so they clip: a card that changes its lane travels as a copy above them.
function fly(root, item, card, from, to, timing) {
  const body = item.closest('.lane-body').getBoundingClientRect();
  const y = Math.min(Math.max(to.top, body.top), Math.max(body.bottom - 40, body.top));
  const copy = card.cloneNode(true);
  copy.classList.add('flying');
  copy.setAttribute('aria-hidden', 'true');
  copy.removeAttribute('tabindex');
  Object.assign(copy.style, { left: `${to.left}px`, top: `${y}px`, width: `${to.width}px`, height: `${to.height}px` });
  root.append(copy);
  const flight = copy.animate([
    { transform: `translate(${from.left - to.left}px, ${from.top - y}px)` },
    { transform: `translate(${(from.left - to.left) / 2}px, ${(from.top - y) / 2}px) scale(1.02)`, offset: 0.5 },
    { transform: 'none' },
  ], { ...timing, duration: 640 });
  const hide = item.animate([{ opacity: 0 }, { opacity: 0 }], { duration: 640 });
  const land = () => {
    copy.remove();
    hide.cancel();
  };
  flight.addEventListener('finish', land);
  flight.addEventListener('cancel', land);
}

function glow(card) {
  for (const a of card.getAnimations()) if (a.id === 'glow') a.cancel();
  card.animate([{ boxShadow: 'var(--card-glow)' }, { boxShadow: 'var(--card-shadow)' }], { id: 'glow', duration: 2600, easing: 'ease-out' });
}

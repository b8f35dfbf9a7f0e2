// What the pages share: elements, ages, the badge, the live region, the theme.

/**
 * Makes an element. Text goes in as text: markup in a payload is never interpreted.
 * @param {string} tag a name, with classes: 'p.note.small'
 * @param {Object<string, any>} [attributes]
 * @param {...(Node|string|null|undefined)} children
 */
export function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split('.');
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(' ');
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

/** Makes an SVG element. */
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** Sets a text only where it changed, so that a tick each second costs nothing. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const LOCALE = 'en-GB'; // the pages speak English, so their dates and numbers do too
const number = new Intl.NumberFormat(LOCALE);
const clock = new Intl.DateTimeFormat(LOCALE, { hour: '2-digit', minute: '2-digit' });
const clockSeconds = new Intl.DateTimeFormat(LOCALE, {
  hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3,
});
const weekday = new Intl.DateTimeFormat(LOCALE, { weekday: 'short' });
const dayMonth = new Intl.DateTimeFormat(LOCALE, { day: 'numeric', month: 'short' });

export const formatNumber = (n) => number.format(n);
export const formatClock = (date) => clock.format(date);
export const formatClockSeconds = (date) => clockSeconds.format(date);

/** A price in hundredths, without a currency: the table has none. */
export const formatPrice = (cents, digits = 2) =>
  (cents / 100).toLocaleString(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** @param {any} price a numeric as to_jsonb gives it */
export const toCents = (price) => Math.round(Number(price ?? 0) * 100) || 0;

/** When a visit is due, as a dispatcher says it: "14:30" today, "Tue 14:30" this week. */
export function formatWhen(value, now = Date.now()) {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return '';
  const days = Math.round((new Date(date).setHours(0, 0, 0, 0) - new Date(now).setHours(0, 0, 0, 0)) / 864e5);
  if (days === 0) return clock.format(date);
  if (days > 0 && days < 7) return `${weekday.format(date)} ${clock.format(date)}`;
  return dayMonth.format(date);
}

/** @param {number} ms */
export function formatAge(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 1) return 'now';
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

/** What a broadcast says: its `message`, a string, or its JSON. */
export function messageOf(data) {
  if (typeof data === 'string') return data;
  if (data && typeof data === 'object' && typeof data.message === 'string') return data.message;
  return JSON.stringify(data) ?? '';
}

/**
 * Runs f once a second while the page can be seen.
 * @param {() => void} f
 */
export function everySecond(f) {
  setInterval(() => document.hidden || f(), 1000);
  document.addEventListener('visibilitychange', () => document.hidden || f());
}

// One polite live region a page. What is said is gathered and spoken at most every few
// seconds: a reader that is never done helps nobody.
const SPEAK_EVERY = 4000;
let waiting = [], speaking = 0;

/** @param {string} text */
export function announce(text) {
  waiting.push(text);
  if (waiting.length > 4) waiting = [`${waiting.length - 3} earlier messages`, ...waiting.slice(-3)];
  if (speaking) return;
  const speak = () => {
    speaking = 0;
    if (!waiting.length) return;
    byId('said').textContent = waiting.join('. ');
    waiting = [];
    speaking = setTimeout(speak, SPEAK_EVERY);
  };
  speaking = setTimeout(speak, 250);
}

const STATES = {
  connecting: ['Connecting', 'Connecting to a worker'],
  live: ['Live', 'Live again'],
  stale: ['Stale', 'Stale: the worker has lost Postgres'],
  offline: ['Offline', 'Offline: trying to come back'],
  closed: ['Closed', 'Closed'],
};

/**
 * The badge in the header: state, worker, age of the last word.
 * Give its `onState` to connect() and the connection to `follow`.
 */
export function badge() {
  const root = byId('badge');
  const [, stateText, workerText, ageText] = root.children;
  let connection, info = {}, retryAt = 0, spoken = 'live', settle = 0;

  const draw = () => {
    const state = root.dataset.state;
    say(stateText, STATES[state][0]);
    say(workerText, info.worker ?? '');
    let age = '';
    if (state === 'offline') age = `again in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s`;
    else if (state === 'closed') age = info.message || '';
    else if (connection && state !== 'connecting') age = formatAge(Date.now() - connection.heard);
    say(ageText, age);
    root.title = state === 'live' || state === 'stale'
      ? `The worker last said something ${age === 'now' ? 'just now' : `${age} ago`}`
      : info.message || '';
  };
  everySecond(draw);

  return {
    follow(c) { connection = c; draw(); },
    onState(state, next) {
      root.dataset.state = state;
      info = next;
      retryAt = Date.now() + (next.retryIn ?? 0);
      draw();
      // A quick reconnect is not worth a word.
      clearTimeout(settle);
      settle = setTimeout(() => {
        const word = state === 'connecting' ? 'offline' : state;
        if (word === spoken) return;
        spoken = word;
        announce(STATES[word][1]);
      }, state === 'closed' ? 0 : 2000);
    },
  };
}

/** What the demo says of itself: its simulator and workers. Null where there is none. */
export async function fetchState() {
  const answer = await fetch('/demo/state', { headers: { accept: 'application/json' }, cache: 'no-store' });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`GET /demo/state: ${answer.status}`);
  return answer.json();
}

/** Links to the same page on the other workers. */
export function workerLinks(workers = [], own) {
  const root = byId('workers');
  root.replaceChildren(...workers.map((w) => {
    if (w.name === own) return el('span', { 'aria-current': 'true' }, w.name);
    let href = '#';
    try {
      const url = new URL(location.pathname, w.url);
      if (url.protocol === 'http:' || url.protocol === 'https:') href = url.href;
    } catch { /* no address, no link */ }
    return el('a', { href, title: `This page on worker ${w.name}` }, w.name);
  }));
  root.hidden = workers.length < 2;
}

/** @param {Response} answer */
export async function problemOf(answer) {
  try {
    const problem = await answer.json();
    return problem.detail || problem.title || `status ${answer.status}`;
  } catch {
    return `status ${answer.status}`;
  }
}

// The theme: a choice is kept only while it differs from the system's.
const dark = matchMedia('(prefers-color-scheme: dark)');
const themeButton = byId('theme');
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? 'dark' : 'light')) === 'dark';
const drawTheme = () => themeButton.setAttribute('aria-pressed', String(isDark()));
themeButton.addEventListener('click', () => {
  const next = isDark() ? 'light' : 'dark';
  if ((next === 'dark') === dark.matches) {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem('trumpet-theme');
  } else {
    document.documentElement.dataset.theme = next;
    localStorage.setItem('trumpet-theme', next);
  }
  drawTheme();
});
dark.addEventListener('change', drawTheme);
drawTheme();

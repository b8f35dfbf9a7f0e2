// Real windows for the tests of boards and dashboards. The Go tests start everything else, and
// drive this by lines of JSON on standard input, each answered by one line:
//
//   node two-clients.mjs http://127.0.0.1:20001/ http://127.0.0.1:20002/
//
// It ends, and its browser with it, when standard input ends.

import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const PATIENCE = 30_000;
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
const urls = process.argv.slice(2);
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

const server = await chromium.launchServer({
  executablePath,
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
  ],
});
say({ pid: server.process().pid });

const windows = [];
const wrong = [];
try {
  const browser = await chromium.connect(server.wsEndpoint());
  for (const [n, url] of urls.entries()) {
    // Contexts share nothing, as two people's browsers.
    const page = await (await browser.newContext({ locale: 'en-GB' })).newPage();
    const frames = []; // what came over the board's own WebSocket, in order
    const asked = []; // what the page's scripts asked for over HTTP
    page.on('request', (request) => ['fetch', 'xhr'].includes(request.resourceType()) && asked.push(new URL(request.url()).pathname));
    page.on('pageerror', (error) => wrong.push(`window ${n + 1}: ${error.message}`));
    page.on('websocket', (socket) => socket.on('framereceived', ({ payload }) => frames.push(JSON.parse(payload))));
    await page.goto(url);
    await page.locator('#badge[data-state="live"]').waitFor({ timeout: PATIENCE });
    windows.push({ page, frames, asked });
  }

  const commands = {
    /** The names of the workers that the windows' badges show. */
    workers: () => Promise.all(windows.map(({ page }) => page.locator('#badge .badge-worker').textContent())),

    /** Sends a message from the board's own box. */
    async send({ window, text }) {
      const { page } = windows[window];
      await page.locator('#message').fill(text);
      await page.locator('#send button').click();
      await page.waitForFunction(() => !document.querySelector('#message').value, null, { timeout: PATIENCE });
    },

    /** Waits until every window shows this broadcast. */
    banner: ({ text }) => Promise.all(windows.map(({ page }) => page.waitForFunction(
      (wanted) => !document.querySelector('#banner').hidden && document.querySelector('#banner-text').textContent === wanted,
      text, { timeout: PATIENCE },
    ))),

    /** Waits until every window shows this card, once, in this lane. */
    card: ({ text, lane }) => Promise.all(windows.map(async ({ page }) => {
      // A card that flies from lane to lane is a copy, outside of the lists.
      const titled = page.locator('.cards > li > .card', { has: page.locator(`h3:text-is(${JSON.stringify(text)})`) });
      await page.locator(`.lane[data-status="${lane}"]`).locator(titled).waitFor({ timeout: PATIENCE });
      const count = await titled.count();
      if (count !== 1) throw new Error(`${count} cards are called ${text}`);
    })),

    /** The events that came over each board's WebSocket since the last time. */
    events: () => windows.map(({ frames }) => frames.splice(0).filter((m) => !m.type)),

    /** How many events wait to be taken by `events`. */
    waiting: () => windows.map(({ frames }) => frames.filter((m) => !m.type).length),
  };

  /** The page of every window that has this path. */
  const on = (path) => windows.filter(({ page }) => new URL(page.url()).pathname === path).map(({ page }) => page);
  /** Waits until `shown`, in each of the pages, gives what is wanted; says what it gives if it never does. */
  const same = (pages, shown, wanted) => Promise.all(pages.map(async (page) => {
    try {
      await page.waitForFunction(shown, { wanted, compare: true }, { timeout: PATIENCE });
    } catch (error) {
      throw new Error(`${page.url()} shows ${await page.evaluate(shown, {})}, want ${JSON.stringify(wanted)}: ${error.message}`);
    }
  }));

  Object.assign(commands, {
    /** Waits until every dashboard shows these numbers. */
    numbers: ({ wanted }) => same(on('/dashboard'), ({ wanted: want, compare }) => {
      const values = (selector, name) => Object.fromEntries([...document.querySelectorAll(selector)]
        .map((data) => [name(data), Number(data.value)]).filter(([, n]) => n).sort());
      const shown = {
        figures: values('.figure data', (data) => data.closest('.figure').dataset.figure),
        status: values('.flow-row data', (data) => data.closest('.flow-row').dataset.status),
        days: values('#days-rows data', (data) => data.dataset.day),
      };
      const text = JSON.stringify(shown);
      if (!compare) return text;
      // What is zero need not be there, neither here nor in the database.
      const sorted = (o) => Object.fromEntries(Object.entries(o).map(([k, n]) => [k, Number(n)]).filter(([, n]) => n).sort());
      return !document.querySelector('[data-stale]')
        && text === JSON.stringify({ figures: sorted(want.figures), status: sorted(want.status), days: sorted(want.days) });
    }, wanted),

    /** Waits until every dashboard marks its figures as stale, and says why. */
    stale: ({ text }) => same(on('/dashboard'), ({ wanted: want, compare }) => {
      const marked = [...document.querySelectorAll('.figure')].every((f) => f.matches('[data-stale]') && /stale/.test(f.querySelector('.age').textContent));
      const why = document.querySelector('#notice').textContent;
      return compare ? marked && why.includes(want) : `${marked}, ${why}`;
    }, text),

    /** Waits until every board shows these cards, by lane, in any order. */
    cards: ({ wanted }) => same(on('/'), ({ wanted: want, compare }) => {
      const shown = {};
      for (const lane of document.querySelectorAll('.lane')) {
        const titles = [...lane.querySelectorAll('.cards > li h3')].map((h) => h.textContent).sort();
        if (titles.length) shown[lane.dataset.status] = titles;
      }
      const text = JSON.stringify(Object.entries(shown).sort());
      return compare ? text === JSON.stringify(Object.entries(want).map(([k, titles]) => [k, titles.sort()]).sort()) : text;
    }, wanted),

    /** Chooses what every board shows only: chips to be pressed or let go, and a priority. */
    filter: ({ chips = [], priority }) => Promise.all(on('/').map(async (page) => {
      for (const status of chips) await page.locator(`.chip[data-status="${status}"]`).click();
      if (priority !== undefined) await page.locator('#priority').selectOption(priority);
    })),

    /** The paths that the dashboards' scripts have asked for. */
    asked: () => windows.filter(({ page }) => new URL(page.url()).pathname === '/dashboard').flatMap(({ asked }) => asked),
  });

  say({ ok: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    try {
      const value = await commands[command.do](command);
      say({ ok: true, value: ['workers', 'events', 'waiting', 'asked'].includes(command.do) ? value : null, wrong: wrong.splice(0) });
    } catch (error) {
      const seen = await Promise.all(windows.map(({ page }) => page.locator('#banner-text').textContent({ timeout: 1000 }).catch(() => '?')));
      say({ ok: false, error: `${command.do}: ${error.message}`, seen, wrong: wrong.splice(0) });
    }
  }
} catch (error) {
  say({ ok: false, error: error.message, wrong });
} finally {
  await server.close();
}

// Screenshots of the pages for docs/: board and dashboard, light and dark, desk and phone.
//
//   node shots.mjs --url http://127.0.0.1:8766 --out ../../docs/screenshots [--settle 6000]
//
// Needs a running demo. It fails if a page throws, breaks its content security policy or
// does not become live.

import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const { values } = parseArgs({
  options: {
    url: { type: 'string' },
    out: { type: 'string', default: 'docs/screenshots' },
    settle: { type: 'string', default: '6000' }, // ms of live events before the picture
    inspect: { type: 'boolean', default: false }, // the operator's view too
    message: { type: 'string', default: 'Road closed at the river bridge until 16:00. Use the north ring.' },
    chromium: { type: 'string', default: process.env.CHROMIUM ?? '/usr/bin/chromium' },
  },
});
if (!values.url) {
  console.error('usage: node shots.mjs --url http://127.0.0.1:8766 [--out folder]');
  process.exit(2);
}

const pages = [['board', '/'], ['dashboard', '/dashboard']];
if (values.inspect) pages.push(['inspect', '/inspect']);
const sizes = [['', { width: 1440, height: 900 }, 1], ['-phone', { width: 390, height: 844 }, 2]];

const browser = await chromium.launch({
  executablePath: values.chromium,
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
  ],
});
const wrong = [];
try {
  await mkdir(values.out, { recursive: true });
  const open = [];
  for (const [name, at] of pages) {
    for (const colorScheme of ['light', 'dark']) {
      for (const [suffix, viewport, deviceScaleFactor] of sizes) {
        const context = await browser.newContext({ viewport, colorScheme, deviceScaleFactor, locale: 'en-GB' });
        const page = await context.newPage();
        const label = `${name}-${colorScheme}${suffix}`;
        page.on('pageerror', (error) => wrong.push(`${label}: ${error.message}`));
        page.on('console', (message) => message.type() === 'error'
          && !message.location().url.endsWith('/demo/state') && wrong.push(`${label}: ${message.text()}`));
        await page.goto(new URL(at, values.url).href);
        await page.locator('#badge[data-state="live"]').waitFor({ timeout: 15_000 });
        open.push({ page, label });
      }
    }
  }
  // One broadcast when all of them listen, then some seconds of events.
  const sent = await fetch(new URL('/api/dispatch/broadcast', values.url), {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ message: values.message }),
  });
  if (!sent.ok) wrong.push(`broadcast: status ${sent.status}`);
  await new Promise((done) => setTimeout(done, Number(values.settle)));
  for (const { page, label } of open) {
    const file = path.join(values.out, `${label}.png`);
    await page.bringToFront();
    await page.waitForTimeout(1500); // what came while the page was behind another
    await page.waitForFunction(() => !document.querySelector('.flying'));
    await page.screenshot({ path: file });
    console.log(file);
  }
} finally {
  await browser.close();
}
if (wrong.length) {
  console.error(wrong.join('\n'));
  process.exit(1);
}

// What the board shows only: chips and a list make a filter that the worker applies. It is
// spelled as in a subscription, here and in the page's address, so that a link shows the same.

import { byId, el } from './page.js';
import { dial, LANES } from './lanes.js';

const PRIORITIES = ['lte.2', 'eq.1'];

/**
 * Draws the chips.
 * @param {() => void} changed
 */
export function boardFilter(changed) {
  const wanted = new Set();
  const priority = byId('priority');
  const asked = new URLSearchParams(location.search);
  const [, statuses] = /^(?:eq\.|in\.\()([a-z_,]+)\)?$/.exec(asked.get('status') ?? '') ?? [];
  for (const lane of LANES) if (statuses?.split(',').includes(lane.status)) wanted.add(lane.status);
  if (PRIORITIES.includes(asked.get('priority') ?? '')) priority.value = asked.get('priority');

  const conditions = () => [
    wanted.size === 1 && `status=eq.${[...wanted]}`,
    wanted.size > 1 && wanted.size < LANES.length && `status=in.(${LANES.map((l) => l.status).filter((s) => wanted.has(s))})`,
    priority.value && `priority=${priority.value}`,
  ].filter(Boolean).join('&');
  const chips = LANES.map((lane) => {
    const chip = el('button.chip', { type: 'button', 'data-status': lane.status }, dial(lane.share), lane.title);
    chip.addEventListener('click', () => {
      if (!wanted.delete(lane.status)) wanted.add(lane.status);
      change();
    });
    byId('chips').insertBefore(chip, priority.closest('label'));
    return chip;
  });
  const draw = () => {
    for (const chip of chips) chip.setAttribute('aria-pressed', String(wanted.has(chip.dataset.status)));
  };
  const change = () => {
    draw();
    history.replaceState(null, '', `${location.pathname}${conditions() && '?'}${conditions()}`);
    changed();
  };
  priority.addEventListener('change', change);
  draw();
  return {
    /** The topic with its filter. */
    get subscription() { return `jobs${conditions() && '?'}${conditions()}`; },
    /** True if jobs of this status may be shown. */
    has: (status) => !wanted.size || wanted.has(status),
    get any() { return Boolean(conditions()); },
  };
}

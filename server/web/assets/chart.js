// Bars over a few round lines: as much of a chart as the dashboard needs.

import { formatNumber, svg } from './page.js';

/** The next of 1, 2, 5, 10, 20, … that is not below v. */
function round(v) {
  const power = 10 ** Math.floor(Math.log10(v));
  return [1, 2, 5, 10].find((n) => n * power >= v) * power;
}

/**
 * @typedef {object} Bar
 * @property {number} value
 * @property {string} label what stands below
 * @property {string} [note] a second line below
 * @property {string} text the value, above the bar where there is room
 * @property {string} title what a pointer is told
 * @property {boolean} [last]
 */
/**
 * Draws bars into an SVG, and anew when its size changes.
 * @param {SVGSVGElement} root
 * @returns {(bars: Bar[]) => void}
 */
export function barChart(root) {
  /** @type {Bar[]} */ let bars = [];
  const draw = () => {
    const { width, height } = root.getBoundingClientRect();
    if (!width || !bars.length) return root.replaceChildren();
    const em = parseFloat(getComputedStyle(root).fontSize);
    const most = Math.max(1, ...bars.map((b) => b.value));
    const step = round(most / 4);
    const left = em * 0.62 * formatNumber(Math.ceil(most / step) * step).length + em * 0.6;
    const top = em * 1.5, floor = height - em * 2.9, each = (width - left) / bars.length;
    const y = (v) => floor - (v / most) * (floor - top);
    const nodes = [];
    for (let v = 0; v <= most; v += step) {
      nodes.push(svg('line', { class: v ? 'grid' : 'axis', x1: left, x2: width, y1: y(v), y2: y(v) }),
        svg('text', { x: left - em * 0.6, y: y(v) + em * 0.35, class: 'tick' }, formatNumber(v)));
    }
    bars.forEach((b, i) => {
      const middle = left + each * (i + 0.5), w = Math.min(each * 0.72, em * 4);
      const bar = svg('rect', { class: b.last ? 'bar-last' : 'bar-day', x: middle - w / 2, width: w, y: y(b.value), height: Math.max(floor - y(b.value), 0), rx: Math.min(3, w / 4) });
      bar.append(svg('title', {}, b.title));
      nodes.push(bar);
      if (b.value && (b.last || each > em * 0.66 * b.text.length)) {
        nodes.push(svg('text', { x: Math.min(middle, width - em * 0.3 * b.text.length), y: y(b.value) - em * 0.4, class: 'bar-text' }, b.text));
      }
      // Every label where there is room, else every second, third … up to the last.
      const every = Math.ceil((em * 2.3) / each);
      if ((bars.length - 1 - i) % every === 0) {
        nodes.push(svg('text', { x: middle, y: floor + em * 1.3, class: 'bar-label' }, b.label));
        if (b.note) nodes.push(svg('text', { x: middle, y: floor + em * 2.5, class: 'bar-note' }, b.note));
      }
    });
    return root.replaceChildren(...nodes);
  };
  new ResizeObserver(draw).observe(root);
  return (next) => {
    bars = next;
    draw();
  };
}

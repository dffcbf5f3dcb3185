/* What scripts/docs_look.py asks of a page that is shown: {complaints, links, names}. */
(() => {
  /* Text that has less contrast than this can hardly be told from what is behind it: as WCAG 2
   * counts, which asks for 4.5. Comments of code in the theme have 2.6. */
  const LEAST_CONTRAST = 2.5;
  /* What may scroll sideways by itself. The theme moves #side-nav out of a narrow window. */
  const SCROLLS = 'pre, .fragment, .memproto, select, input, #nav-tree, #side-nav, ' +
      '#MSearchSelectWindow, #MSearchResultsWindow' + (innerWidth < 768 ? ', table' : '');
  const complaints = new Set();
  const called = e => '<' + e.tagName.toLowerCase() + (e.id ? ' id=' + e.id : '') +
      (typeof e.className === 'string' && e.className ? ' class=' + e.className : '') + '> ' +
      (e.textContent || '').trim().replace(/\s+/g, ' ').slice(0, 40);
  const visible = [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return e.checkVisibility({visibilityProperty: true}) && box.width && box.height;
  });

  /* ---- Too wide ---- */

  const overflow = e => getComputedStyle(e).overflowX;
  const scrolls = e => ['auto', 'scroll'].includes(overflow(e));
  const contained = e => e && (e.matches(SCROLLS) && scrolls(e) || contained(e.parentElement));
  const end = e => e.getBoundingClientRect().right;
  const widest = e => [...e.querySelectorAll('*')].filter(x => !contained(x.parentElement))
      .reduce((x, y) => x === e || end(y) > end(x) ? y : x, e);
  const page = document.scrollingElement;
  if (page.scrollWidth > innerWidth + 1)
    complaints.add(`is ${page.scrollWidth} px wide, by ${called(widest(document.body))}`);
  for (const e of visible) {
    if (e.scrollWidth <= e.clientWidth + 1 || contained(e)) continue;
    if (scrolls(e)) complaints.add(`scrolls sideways: ${called(e)}, by ${called(widest(e))}`);
    if (overflow(e) === 'hidden' && e.closest('.contents'))
      complaints.add(`something is cut off: ${called(widest(e))}`);
  }

  /* ---- Missing ---- */

  for (const e of document.images)
    if (!e.complete || !e.naturalWidth)
      complaints.add(`a picture does not show: ${e.getAttribute('src')}`);
  if (!document.title.trim()) complaints.add('has no title');
  const text = document.querySelector('div.contents') || document.body;
  if (!text.innerText.trim()) complaints.add('has no text');

  /* ---- Hardly seen: text in front of plain colours ---- */

  const parse = colour => (colour.match(/[\d.]+/g) || []).map(Number);
  const over = (front, back) => {
    const alpha = front.length > 3 ? front[3] : 1;
    return [0, 1, 2].map(i => front[i] * alpha + back[i] * (1 - alpha));
  };
  const linear = c => c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  /* null: a picture. */
  const behind = e => {
    if (!e) return [255, 255, 255];
    const style = getComputedStyle(e), back = behind(e.parentElement);
    if (!back || style.backgroundImage !== 'none') return null;
    return over(parse(style.backgroundColor), back);
  };
  for (const e of visible) {
    const back = behind(e);
    const says = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!says || !back || e.closest('svg')) continue;
    const front = over(parse(getComputedStyle(e).color), back);
    const [less, more] = [light(front), light(back)].sort((a, b) => a - b);
    const contrast = (more + 0.05) / (less + 0.05);
    if (contrast < LEAST_CONTRAST) complaints.add(`contrast ${contrast.toFixed(1)}: ${called(e)}`);
  }

  return {
    complaints: [...complaints],
    links: [...new Set([...document.links].map(a => a.href))],
    names: [...document.querySelectorAll('[id], a[name]')].flatMap(e => [e.id, e.name])
        .filter(name => typeof name === 'string' && name),
  };
})()

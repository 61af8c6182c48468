"""A real browser for tests: what is rendered, said on the console, asked of the network, and how readable it is."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# the contrast (WCAG 2) of each piece of text against the first opaque background behind it, the worst first
CONTRASTS = """() => {
  const rgba = text => { const p = text.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p };
  const luminance = ([r, g, b]) => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                                     return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b) };
  const behind = element => { for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor); if (colour[3] === 1) return colour }
    return null };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = texts.nextNode();) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.getClientRects().length) continue;
    const back = behind(element);
    if (!back) { found.push([0, 'no background: ' + node.data]); continue }
    const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(back)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.data.trim()]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""

# what stands out of the page to the right, unless it lies in a box that scrolls or clips
WIDE = """() => [...document.querySelectorAll('body *')].filter(element => {
  if (element.getBoundingClientRect().right <= document.documentElement.clientWidth + 0.5) return false;
  for (let e = element.parentElement; e; e = e.parentElement)
    if (getComputedStyle(e).overflowX !== 'visible') return false;
  return true }).map(element => element.outerHTML.slice(0, 120))"""


@contextmanager
def chromium():
    """A running headless browser; skips where none, or no driver of one, is installed."""
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser on PATH (one of {', '.join(NAMES)})")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, width=1440, height=900, **more):
    """(page, complaints): the file shown; complaints are console messages, errors and requests beside the file itself."""
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    own = path.resolve().as_uri()

    def note(request):
        if request.url != own and not request.url.startswith("data:"):
            complaints.append(f"request: {request.url}")

    page.on("request", note)
    page.goto(own, wait_until="load")
    yield page, complaints
    context.close()

#!/usr/bin/env python3
"""Looks at the site of `make docs` as a reader does: every page in headless Chromium.

  scripts/docs_look.py [--screenshots DIRECTORY] [--only PATTERN] [SITE]   SITE: build/docs/html
  scripts/docs_look.py --self-test                                         proves that it can fail

Each page is shown wide and narrow, light and dark (`LOOKS`). A look fails where

  - something makes the page, or its column of text, wider than the window. Code scrolls by itself,
    and may be wider; in a narrow window a table may, too;
  - a picture, a stylesheet or a script does not load, or a script ends in an error;
  - a link to this site leads to no page, or to no place in it;
  - the page has no title or no text;
  - text can hardly be told from what is behind it.

`--screenshots` keeps a picture of each look. `CHROMIUM` names the browser where it is none of
`BROWSERS`. Where there is none, a line that begins with SKIPPED: says so, and nothing fails.
Chromium is driven by its DevTools protocol over two pipes: no port is opened.

The last line is `N passed, N failed`, of looks. Exits 1 where one failed.
"""
import argparse
import base64
import collections
import fcntl
import fnmatch
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
           "--no-first-run", "--disable-background-networking", "--disable-extensions",
           "--mute-audio",
           "--remote-debugging-pipe", "about:blank"]
Look = collections.namedtuple("Look", "name width height scheme")
LOOKS = [Look("wide", 1280, 800, "light"), Look("narrow", 390, 844, "light"),
         Look("wide-dark", 1280, 800, "dark"), Look("narrow-dark", 390, 844, "dark")]
# Seconds that one answer of the browser may take: a guard against hangs, on a busy machine, too.
PATIENCE = 120
# A picture shows so many pixels of a page's height.
TALLEST = 5000

# Over when nothing moves in the page, and its pictures are there or known to be gone.
SETTLE = """new Promise(done => {
  const moves = () => document.getAnimations().some(a => a.playState === 'running') ||
      (window.jQuery && jQuery(':animated').length > 0) ||
      [...document.images].some(image => !image.complete);
  const end = Date.now() + 10000;
  const ask = left => requestAnimationFrame(() => moves() && Date.now() < end ? ask(3)
      : left > 0 ? ask(left - 1) : done(true));
  ask(3);
})"""
EXAMINE = (ROOT / "scripts/docs_look.js").read_text()


class Lost(Exception):
    """The browser ended, or does not answer."""


class Browser:
    """One Chromium with one tab."""

    def __init__(self, program, scratch):
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()
        # Out of the way of 3 and 4, which Chromium reads and writes.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, to_write)]
        os.close(to_read)
        os.close(to_write)

        def place():
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.log = open(f"{scratch}/browser.log", "w+b")
        self.process = subprocess.Popen(
            [program, f"--user-data-dir={scratch}/profile", *OPTIONS], stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log, close_fds=False, preexec_fn=place,
            start_new_session=True, env={**os.environ, "HOME": scratch})
        for end in high:
            os.close(end)
        self.got, self.number, self.session, self.events = b"", 0, None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.ask(f"{domain}.enable")
        self.ask("Page.setLifecycleEventsEnabled", enabled=True)

    def close(self):
        for end in (self.read, self.write):
            os.close(end)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()

    def next(self):
        """The next message of the browser."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.got:
            ready, _, _ = select.select([self.read], [], [], max(0, end - time.monotonic()))
            got = os.read(self.read, 1 << 20) if ready else b""
            if not got:
                self.log.seek(0)
                raise Lost(("it ended: " if ready else f"no answer in {PATIENCE} s: ") +
                           self.log.read().decode(errors="replace")[-2000:])
            self.got += got
        message, _, self.got = self.got.partition(b"\0")
        return json.loads(message)

    def ask(self, method, **parameters):
        """Sends a command; returns its result. Events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data):]
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise Lost(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def value_of(self, expression):
        result = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True,
                          returnByValue=True)
        if "exceptionDetails" in result:
            raise Lost(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def show(self, url, look):
        """Loads a page; returns what it complains of while it loads."""
        self.ask("Emulation.setDeviceMetricsOverride", width=look.width, height=look.height,
                 deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": look.scheme},
                           {"name": "prefers-reduced-motion", "value": "reduce"}])
        self.ask("Page.navigate", url="about:blank")
        self.events = []
        answer = self.ask("Page.navigate", url=url)
        if "errorText" in answer:
            return [f"does not load: {answer['errorText']}"]
        # The page before this one may tell of its own load yet.
        while not any(event.get("method") == "Page.lifecycleEvent" and
                      event["params"]["name"] == "load" and
                      event["params"]["loaderId"] == answer["loaderId"] for event in self.events):
            self.events.append(self.next())
        self.value_of(SETTLE)
        return list(self.trouble())

    def trouble(self):
        urls = {}
        for event in self.events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                urls[about["requestId"]] = about["request"]["url"]
            elif method == "Network.loadingFailed" and not about.get("canceled"):
                url = urls.get(about["requestId"], "something")
                yield f"{url.rpartition('/')[2]} does not load: {about['errorText']}"
            elif method == "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                yield "a script fails: " + details.get("exception", {}).get(
                    "description", details["text"]).splitlines()[0]

    def picture(self, path, look):
        """All of the page, as far as TALLEST goes: what scrolls within it is given the height."""
        height = self.value_of("Math.max(...['html', '#doc-content'].map(which => { const e = "
                               "document.querySelector(which); return e ? e.scrollHeight + "
                               "e.getBoundingClientRect().top : 0; }))")
        self.ask("Emulation.setDeviceMetricsOverride", width=look.width,
                 height=int(min(max(height + 10, look.height), TALLEST)), deviceScaleFactor=1,
                 mobile=False)
        self.value_of(SETTLE)
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


def lost_links(site, page, links, names):
    """Links within the site that lead nowhere. `names` has those of each page that was shown."""
    for link in links:
        url = urllib.parse.urlsplit(link)
        if url.scheme != "file":
            continue
        path = pathlib.Path(urllib.parse.unquote(url.path))
        anchor = urllib.parse.unquote(url.fragment)
        shown = os.path.relpath(path, site) + (f"#{anchor}" if anchor else "")
        if not path.is_file() or site not in path.parents:
            yield f"a link leads to no page: {shown}"
        elif anchor and path in names and anchor not in names[path]:
            yield f"a link leads to no place: {shown}"


def look_at(browser, site, pages, pictures):
    """Complaints by (page, look)."""
    said, names, links = collections.OrderedDict(), {}, {}
    for page in pages:
        for look in LOOKS:
            complaints = browser.show(page.as_uri(), look)
            if not any(complaint.startswith("does not load") for complaint in complaints):
                found = browser.value_of(EXAMINE)
                complaints += found["complaints"]
                names.setdefault(page, set()).update(found["names"])
                links[page, look] = found["links"]
                if pictures:
                    browser.picture(pictures / f"{page.stem}-{look.name}.png", look)
            said[page, look] = complaints
    for (page, look), targets in links.items():
        said[page, look] += lost_links(site, page, targets, names)
    return said


def browser_program():
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


def skip():
    print("SKIPPED: no page was looked at: chromium is not installed (Debian's package chromium; "
          "CHROMIUM names a browser of another name)")
    print("0 passed, 0 failed")


def examine(program, site, only="*", pictures=None):
    site = site.resolve()
    pages = [page for page in sorted(site.glob("*.html")) if fnmatch.fnmatch(page.name, only)]
    if not pages:
        print(f"docs_look: there is no page in {site}: `make docs` makes the site")
        print("0 passed, 1 failed")
        return {(site, LOOKS[0]): ["there is no page"]}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        browser = Browser(program, scratch)
        try:
            return look_at(browser, site, pages, pictures)
        finally:
            browser.close()


def tell(said):
    for (page, look), complaints in said.items():
        for complaint in complaints:
            print(f"{page.name}, {look.name}: {complaint}")
    failed = sum(bool(complaints) for complaints in said.values())
    print(f"{len(said) - failed} passed, {failed} failed")
    return failed


# ---- The test of this script ----

SOUND = ('<!DOCTYPE html><html><head><title>t</title>{head}</head><body style="{style}">'
         '<div class="contents"><p id="here">Some text. <a href="#here">A link</a></p>{body}</div>'
         "</body></html>")
NARROW = {"narrow", "narrow-dark"}
FAULTS = {  # what is put into a sound page, what must be said of it, in which looks
    "wide": (dict(body='<p style="width: 700px">x</p>'), "is 708 px wide, by <p>", NARROW),
    "scrolls": (dict(body='<div style="overflow: auto"><p style="width: 700px">x</p></div>'),
                 "scrolls sideways: <div>", NARROW),
    "table": (dict(body='<table style="display: block; overflow: auto"><tr><td><p style="width: '
                        '2000px">x</p></td></tr></table>'), "scrolls sideways: <table>",
              {"wide", "wide-dark"}),
    "picture": (dict(body='<img src="gone.png" alt="">'), "a picture does not show: gone.png",
                None),
    "object": (dict(body='<object data="gone.svg" type="image/svg+xml"></object>'),
               "gone.svg does not load", None),
    "stylesheet": (dict(head='<link rel="stylesheet" href="gone.css">'), "gone.css does not load",
                   None),
    "script": (dict(body="<script>gone();</script>"), "a script fails: ReferenceError", None),
    "page": (dict(body='<a href="gone.html">x</a>'), "a link leads to no page: gone.html", None),
    "place": (dict(body='<a href="sound.html#gone">x</a>'),
              "a link leads to no place: sound.html#gone", None),
    "made": (dict(body='<script>document.write("<a href=\'made.html#gone\'>x</a>")</script>'),
             "a link leads to no place: made.html#gone", None),
    "dark": (dict(head="<style>@media (prefers-color-scheme: dark) { body { background: #222; } }"
                       "</style>"), "contrast 1.3: <p", {"wide-dark", "narrow-dark"}),
}


def self_test(program):
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        site = pathlib.Path(scratch)
        empty = dict(head="", style="", body="")
        (site / "sound.html").write_text(SOUND.format(**empty))
        (site / "empty.html").write_text("<!DOCTYPE html><title>t</title><p><br></p>")
        (site / "title.html").write_text(SOUND.format(**empty).replace("<title>t</title>", ""))
        wanted = {"sound": (None, set()), "empty": ("has no text", None),
                  "title": ("has no title", None)}
        for name, (parts, words, looks) in FAULTS.items():
            (site / f"{name}.html").write_text(SOUND.format(**{**empty, **parts}))
            wanted[name] = (words, looks)
        said = examine(program, site)
        for (page, look), complaints in said.items():
            words, looks = wanted[page.stem]
            expected = words is not None and (looks is None or look.name in looks)
            found = any(words in complaint for complaint in complaints) if words else False
            if expected != bool(complaints) or expected != found:
                bad += 1
                print(f"docs_look: self-test: {page.name}, {look.name}: {complaints}, not {words}")
        if len(said) != len(wanted) * len(LOOKS):
            bad += 1
            print(f"docs_look: self-test: {len(said)} looks at {len(wanted)} pages")
    print("docs_look: self-test " + ("fails" if bad else "holds"))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screenshots", type=pathlib.Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("site", nargs="?", type=pathlib.Path, default=ROOT / "build/docs/html")
    arguments = parser.parse_args()
    program = browser_program()
    if not program:
        skip()
        return 0
    if arguments.self_test:
        return self_test(program) > 0
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    if not (arguments.site / "doxygen-awesome.css").exists():
        print("docs_look: the site is without its theme, Debian's package doxygen-awesome-css: "
              "Doxygen's own looks do not fit a narrow window")
    return tell(examine(program, arguments.site, arguments.only, arguments.screenshots)) > 0


if __name__ == "__main__":
    sys.exit(main())

"""Opens the page about a run in a browser without a window: python check_report.py REPORT_HTML

Everything must be there and have a place, on a wide window and a narrow one, and nothing may be asked for from elsewhere.
"""

import html.parser
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

CURVES = ["loss", "learning rate", "gradient norm", "memory, GB", "tokens per second"]
SECTIONS = ["Counts", "Records", "Curves", "Before and after", "Configuration"]

# What a browser makes of the page, told in an attribute of its body.
PROBE = """
<script>
const box = element => { const { width, height } = element.getBoundingClientRect(); return [width, height]; };
document.body.dataset.found = JSON.stringify({
    charts: [...document.querySelectorAll("svg")].map(box),
    lines: [...document.querySelectorAll("svg")].map(svg => svg.querySelectorAll("polyline").length),
    texts: [...document.querySelectorAll("svg text")].map(text => text.textContent.trim()),
    sections: [...document.querySelectorAll("h2")].map(title => title.textContent),
    cells: [...document.querySelectorAll("td")].map(cell => cell.textContent),
    settings: document.querySelector("pre").textContent,
    width: [document.documentElement.scrollWidth, innerWidth],
    asked: performance.getEntriesByType("resource").length,
});
</script>
"""


class Body(html.parser.HTMLParser):
    """Finds what the page tells."""

    found = None

    def handle_starttag(self, tag, attrs):
        if tag == "body":
            self.found = dict(attrs).get("data-found")


def open_page(browser: str, page: pathlib.Path, width: int) -> dict:
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                   f"--window-size={width},900", "--dump-dom", page.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    body = Body()
    body.feed(shown.stdout)
    assert body.found, shown.stdout[:2000]
    return json.loads(body.found)


def check(found: dict) -> None:
    assert found["sections"] == SECTIONS, found["sections"]
    assert len(found["charts"]) == len(CURVES), found["charts"]
    for width, height in found["charts"]:
        assert width >= 300 and height >= 150, found["charts"]
    assert all(lines > 0 for lines in found["lines"]), found["lines"]
    missing = set(CURVES) - {text.removesuffix(", logarithmic") for text in found["texts"]}
    assert not missing, missing
    cells = found["cells"]
    for cell in ["optimizer steps", "empty answer", "rubber"]:
        assert cell in cells, cells
    assert "lora_rank: 8" in found["settings"]
    assert found["asked"] == 0, found["asked"]
    content, window = found["width"]
    assert content <= window, f"the page is {content} wide in a window of {window}"


def main(report: str) -> None:
    names = ["chromium", "chromium-browser", "google-chrome"]
    browser = next(filter(None, map(shutil.which, names)), None)
    assert browser, f"none of {names} is installed"
    text = pathlib.Path(report).read_text()
    assert "<script" not in text
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "report.html"
        page.write_text(text.replace("</body>", f"{PROBE}</body>"))
        for width in [1280, 500]:
            check(open_page(browser, page, width))
    print("the page about a run shows everything, in a wide window and in a narrow one")


if __name__ == "__main__":
    main(sys.argv[1])

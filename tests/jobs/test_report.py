"""Reports in a real browser: rendered, complete in themselves, readable everywhere; nothing changed is shown."""

import fcntl
import itertools
import json
import re
import shutil
import subprocess
import sys

import pytest
from browser import CONTRASTS, WIDE, chromium, opened
from commands import distrec

from distrec.data import store
from distrec.jobs import report
from distrec.jobs.pages import html, page, picture
from distrec.jobs.pages.page import Cards, Page, Picture, Section, Table, Text

SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20"]
TONE = [
    "model.name=tone", "embed.encoder=builtin", "codes.name=kmeans", "codes.size=16", "codes.gate=false", "model.max_len=8",
    "model.d_model=16", "model.d_ff=32", "model.d_kv=8", "model.n_heads=2", "model.n_layers=1", "train.epochs=3",
]  # fmt: skip
SASREC = ["model.d_model=16", "train.epochs=4", "train.batch_tokens=400", "train.log_steps=2"]
EVIL = "<script>alert(1)<&'\""
HOSTILE = Page(
    EVIL,
    (
        Section(
            EVIL,
            (
                Text(EVIL, "verdict"),
                Text(EVIL, "code", EVIL),
                Cards(((EVIL, EVIL, EVIL),)),
                Table((EVIL, EVIL), ((EVIL, 0.5), (f"</table>{EVIL}", None)), EVIL),
                Picture("gain", f'" onerror="alert(1)" {EVIL}'),
            ),
        ),
    ),
)


def draw(folder, stem="gain"):
    figure, axes = picture.new()
    axes.plot([1, 2, 3])
    picture.name(axes, "frequency", "gain")
    picture.save(figure, folder, stem)


def artefact(target, told=HOSTILE, **made):
    def fill(folder):
        draw(folder)
        page.write(folder, told)

    return store.write(target, {"asked": EVIL, **made}, fill)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generative run with what was analysed in it, a trained and a counting one, a page by itself."""
    place = tmp_path_factory.mktemp("report")
    asked = [
        [*SMALL, *TONE, f"out={EVIL}"],
        [*SMALL, *SASREC, "out=sasrec"],
        [*SMALL, "model.name=popularity", "score.bootstrap=0", "out=counted"],
    ]
    program = f"from distrec.train import main\nfor words in {asked!r}: main(words)"
    subprocess.run([sys.executable, "-c", program], cwd=place, check=True, capture_output=True)
    artefact(place / EVIL / "analysis", run=store.content(place / EVIL))
    artefact(place / "compared")
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy to break."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def whole(made):
    """One report on everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        report.main([EVIL, "sasrec", "counted", "compared", "out=all.html"])
    return made / "all.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def test_it_is_rendered_and_asks_nothing_of_anyone(browser, whole):
    with opened(browser, whole) as (shown, complaints):
        assert complaints == []
        levels = shown.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(each => +each.tagName[1])")
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        titles = shown.eval_on_selector_all("h3", "all => all.map(each => each.textContent)")
        assert {"Summary", "Test figures", "Training", "By length of history", "Config", "Provenance"} <= set(titles)
        images = shown.eval_on_selector_all("img", "all => all.map(each => [each.naturalWidth, each.alt])")
        assert len(images) > 10
        assert all(width > 0 and alt for width, alt in images)
        assert shown.evaluate("document.documentElement.lang") == "en"
        assert shown.locator("th:not([scope])").count() == 0
        ids = shown.eval_on_selector_all("[id]", "all => all.map(each => each.id)")
        assert len(ids) == len(set(ids))
        for link in shown.eval_on_selector_all("nav a", "all => all.map(each => each.getAttribute('href'))"):
            assert shown.locator(link).count() == 1, link
    assert whole.stat().st_size < 2_000_000


def test_nothing_from_data_becomes_markup(browser, whole):
    with opened(browser, whole) as (shown, _):
        assert shown.locator("script, [onerror], b, i, svg").count() == 0
        assert shown.locator("h3", has_text=EVIL).count() == 2
        assert shown.locator("td", has_text=EVIL).count() > 2
        assert EVIL in shown.title()
        assert shown.locator("img[alt^='\" onerror']").count() == 2


def test_the_policy_keeps_the_network_out(browser, whole):
    """And the tests would see it, were it asked."""
    with opened(browser, whole) as (shown, complaints):
        shown.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">')")
        shown.wait_for_timeout(200)
        assert any("Content Security Policy" in complaint for complaint in complaints)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1440])
def test_it_fits_every_screen_and_can_be_read(browser, whole, width, scheme):
    with opened(browser, whole, width, color_scheme=scheme) as (shown, complaints):
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        assert shown.evaluate(WIDE) == []
        contrasts = shown.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert contrasts[0][0] >= 4.5, contrasts[:3]
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_in_pictures_can_be_read(browser, made, tmp_path, scheme):
    """The ink of axes, as the browser paints it, against the page."""
    draw(tmp_path)
    square = f'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"><rect width="90" height="90" fill="{picture.INK}"/></svg>'
    (tmp_path / "gain.svg").write_text(square)
    told = Page("Ink", (Section("Ink", (Picture("gain", "ink"),)),))
    (tmp_path / "ink.html").write_text(html.document("Ink", [html.Chapter(told, tmp_path)]))
    with opened(browser, tmp_path / "ink.html", color_scheme=scheme) as (shown, _):
        box = shown.locator("img").bounding_box()
        (tmp_path / "shot.png").write_bytes(shown.screenshot())
    from matplotlib import image

    shot = image.imread(tmp_path / "shot.png")[..., :3]
    ink = shot[int(box["y"] + 40), int(box["x"] + 40)]
    paper = shot[int(box["y"] + 40), int(box["x"] - 8)]

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.tolist()]
        return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(ink), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_paper_is_white_with_everything_on_it(browser, whole):
    with opened(browser, whole, 680, color_scheme="dark") as (shown, _):
        assert shown.locator("details pre").first.bounding_box()["height"] == 0
        shown.emulate_media(media="print")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert all(box.bounding_box()["height"] > 10 for box in shown.locator("details pre").all())
        cut = "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.textContent)"
        assert shown.eval_on_selector_all(".wide, pre", cut) == []
        assert shown.evaluate(WIDE) == []
        assert shown.evaluate(CONTRASTS)[0][0] >= 4.5


def text(path):
    return re.sub(r"<[^>]*>", " ", path.read_text().replace("<wbr>", ""))


def test_it_tells_the_figures_of_the_run(place, capsys):
    report.main(["sasrec"])
    assert capsys.readouterr().out == "sasrec/report.html\n"
    told, found = text(place / "sasrec/report.html"), json.loads((place / "sasrec/test.json").read_text())
    for protocol in ("full", "sampled_1_20"):
        for key in ("hr@10", "ndcg@10", "mrr"):
            assert f" {found[protocol][key]:.4f} " in told
            assert "[{:.4f}, {:.4f}]".format(*found[protocol][f"{key}_ci"]) in told
    lines = [json.loads(line) for line in (place / "sasrec/metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["event"] == "valid"), key=lambda line: line["ndcg@10"])
    assert f"the best NDCG@10, {best['ndcg@10']:.4f}, is that of epoch {best['epoch']}" in told
    for word in ("Training loss", "Learning rate", "Throughput", "utilisation", "model.d_model", "torch", "verified"):
        assert word in told
    stamp = store.read_stamp(place / "sasrec")
    assert store.content(place / "sasrec") in told
    assert stamp["made_by"]["data"] in told
    assert "Finished." in told
    assert "distrec train sasrec/config.yaml out=NEW_FOLDER" in told
    assert "distrec report sasrec" in told


def test_a_generative_run_is_told_under_every_way_of_decoding(whole):
    told = text(whole)
    for word in ("All items, constrained", "Target and 20 drawn items", "Generated freely, then items only"):
        assert word in told
    assert "of what was generated freely is no item" in told
    assert "Target and 20 drawn items" in told
    assert "sigma" in told
    assert "codes" in told


def test_groups_by_history_are_those_of_the_data(place):
    from distrec.data import prepared

    report.main(["counted"])
    data = prepared.load(next((place / "artefacts").glob("prepared-*")))
    users, places = data.targets("test")
    length = places - data.start[users]
    (rows,) = re.findall(r"Groups of about.*?<tbody>(.*?)</tbody>", (place / "counted/report.html").read_text(), re.S)
    found = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in rows.strip().splitlines()]
    for group, n, *_ in found:
        low, _, high = group.partition("–")
        assert int(n) == ((length >= int(low)) & (length <= int(high or low))).sum()
    assert sum(int(row[1]) for row in found) == len(users)


def test_the_same_run_gives_the_same_bytes(place):
    told = []
    for _ in range(2):
        report.main([EVIL])
        told.append((place / EVIL / "report.html").read_bytes())
    assert told[0] == told[1]


def stop(run):
    """The folder as a run leaves it that was stopped."""
    for name in ("stamp.json", "test.json", "ranks.parquet"):
        (run / name).unlink()
    shutil.rmtree(run / "item_table")
    with (run / "metrics.jsonl").open("a") as journal:
        journal.write('{"event": "tra')


def test_a_stopped_and_a_running_run_say_so(place):
    stop(place / "sasrec")
    step = int(max((place / "sasrec/checkpoints").iterdir()).name.split("-")[1])
    report.main(["sasrec"])
    told = text(place / "sasrec/report.html")
    assert f"Stopped at step {step}." in told
    assert "Training loss" in told
    assert "Users 120" in re.sub(r"\s+", " ", told)
    with (place / "sasrec/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report.main(["sasrec"])
    assert "Running, step" in text(place / "sasrec/report.html")
    (place / "sasrec/metrics.jsonl").write_text('{"event": "valid"}\n{"event": "test"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: no record of a run"):
        report.main(["sasrec"])


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("run", "pattern"),
    [
        ("sasrec", "sasrec/ranks.parquet"),
        ("sasrec", "sasrec/metrics.jsonl"),
        ("sasrec", "sasrec/checkpoints/*/model.safetensors"),
        ("sasrec", "sasrec/item_table/*.safetensors"),
        ("sasrec", "artefacts/prepared-*/interactions.arrow"),
        (EVIL, "artefacts/codes-*/codes.safetensors"),
        (EVIL, "artefacts/vectors-*/*.safetensors"),
        (EVIL, f"{EVIL}/analysis/gain.svg"),
        (EVIL, f"{EVIL}/analysis/page.json"),
        ("compared", "compared/page.json"),
    ],
)
def test_what_was_changed_is_refused_by_name(place, run, pattern):
    for path in place.glob(pattern):
        flip(path)
    with pytest.raises(ValueError, match=f"is corrupt: {re.escape(path.name)}"):
        report.main([run])
    assert not (place / run / "report.html").exists()
    assert not (place / f"{run}.html").exists()


def test_an_analysis_of_a_run_that_stood_there_before_is_refused(place):
    artefact(place / "counted/analysis", run="0" * 64)
    with pytest.raises(ValueError, match="counted/analysis is about another run"):
        report.main(["counted"])


def test_what_is_not_at_hand_is_said(place):
    (place / "artefacts").rename(place / "moved")
    report.main([EVIL])
    told = text(place / EVIL / "report.html")
    assert "not at hand" in told
    assert "By length of history" not in told
    report.main([EVIL, "data.root=moved"])
    told = text(place / EVIL / "report.html")
    assert "not at hand" not in told
    assert "By length of history" in told


def test_a_page_by_itself_is_told_beside_its_folder(place, capsys):
    report.main(["compared"])
    assert capsys.readouterr().out == "compared.html\n"
    store.verify(place / "compared")
    with pytest.raises(ValueError, match="lies in an artefact"):
        report.main(["compared", "out=compared/report.html"])


def broken(place):
    def fill(folder):
        (folder / "page.json").write_text('{"title": 5}')

    store.write(place / "broken", {}, fill)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "report needs a folder"),
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty is neither a run folder"),
        (["broken"], "broken holds no page of distrec"),
        (["unstamped"], "unstamped has no stamp.json"),
        (["away"], "lacks the picture '../gain'"),
        (["sasrec", "out=nowhere/x.html"], "no file can be written there"),
        (["compared", "out=/proc/x.html"], "out=/proc/x.html: no file can be written there (No such file"),
        (["sasrec", "out=empty"], "ends in .html"),
        (["sasrec", "out="], "out= has no value"),
        (["sasrec", "seed=1"], "not seed"),
        (["sasrec", "counted"], "out=FILE.html"),
    ],
)
def test_wrong_input_is_one_line(place, words, says):
    (place / "empty").mkdir()
    broken(place)
    (place / "unstamped").mkdir()
    page.write(place / "unstamped", HOSTILE)
    artefact(place / "away", Page("x", (Section("x", (Picture("../gain", "x"),)),)))
    with pytest.raises((ValueError, OSError)) as refused:
        report.main(words)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_ends_with_2_and_one_line(place):
    flip(place / "sasrec/test.json")
    refused = distrec("report", "sasrec", cwd=place, code=2)
    assert refused.stderr.startswith("error: sasrec is corrupt: test.json")
    assert len(refused.stderr.splitlines()) == 1


def test_a_heavy_picture_comes_as_pixels(tmp_path):
    draw(tmp_path)
    told = Page("x", (Section("x", (Picture("gain", "x"),)),))
    assert "image/svg+xml" in html.document("x", [html.Chapter(told, tmp_path)])
    with (tmp_path / "gain.svg").open("a") as file:
        file.write(" " * 500_000)
    assert "image/png" in html.document("x", [html.Chapter(told, tmp_path)])


def test_a_wide_picture_has_a_row_of_its_own(tmp_path):
    for stem, width in (("panorama", 9.0), ("usual", 5.0)):
        figure, axes = picture.new(width, 3.3)
        axes.plot([1, 2])
        picture.save(figure, tmp_path, stem)
        told = Page("x", (Section("x", (Picture(stem, "x"),)),))
        assert ('<figure class="panorama">' in html.document("x", [html.Chapter(told, tmp_path)])) == (
            stem == "panorama"
        )


def test_the_command_of_an_analysis_makes_the_same_one(place):
    analysed = artefact(place / "sasrec/analysis", run=store.content(place / "sasrec"), users=7, steps=60, parts=["spectra", "cost"])  # fmt: skip
    report.main(["sasrec"])
    assert "distrec analyze out=sasrec users=7 steps=60 parts=spectra,cost\n" in text(place / "sasrec/report.html")
    assert analysed.is_dir()


def test_a_page_is_read_as_it_was_written(tmp_path):
    told = Page(
        "x", (*HOSTILE.sections, Section("y", (Table(("a", "b"), (("x", 1), ("y", 2.5), ("z", None), ("q", True))),)))
    )
    page.write(tmp_path, told)
    assert page.load(tmp_path) == told
    with pytest.raises(ValueError, match="a row of another length"):
        Table(("a", "b"), (("x",),))


def test_a_logarithmic_axis_has_numbers_not_formulae():
    figure, axes = picture.new()
    axes.plot([1, 10, 1000], [1e-9, 1e-2, 1])
    axes.set_xscale("log")
    axes.set_yscale("log")
    picture.name(axes, "rank", "share")
    figure.canvas.draw()
    told = [label.get_text() for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")]
    assert {"1", "100", "0.01"} <= set(told)
    assert not [text for text in told if "$" in text]

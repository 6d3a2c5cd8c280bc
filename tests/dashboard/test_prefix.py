"""The dashboard under a path: its page and its script ask for what is there, or its page is left out."""

import gzip
import http.client
from pathlib import Path
from urllib.parse import urlsplit

import optuna_dashboard
import pytest

from budgettune.dashboard.app import listen, make_app
from budgettune.dashboard.prefix import OTHERS_IN_SCRIPT, Prefixed, checked_prefix
from budgettune.errors import UsageError
from budgettune.study.handle import create_study
from tests.support.studies import grid
from tests.support.wsgi import Visitor

FOLDER = Path(optuna_dashboard.__file__).parent


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('prefix')}/study.db"
    create_study(grid(), url).close()
    return url


@pytest.fixture(scope="module")
def visit(url):
    return Visitor(make_app(url, prefix="/tune/"), prefix="/tune")


def test_everything_that_the_page_and_its_script_ask_for_has_the_prefix(visit):
    assert (visit("/").status, visit("/").headers["Location"]) == (302, "/tune/dashboard")
    page = visit("/dashboard/studies/1")
    assert '<script defer src="/tune/static/bundle.js">' in page.text
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    script = visit("/static/bundle.js").text
    assert 'url_prefix:"/tune/dashboard"' in script
    assert "fetch(`${this.baseURL}/tune/api/studies`" in script
    assert "${this.baseURL}/api/" not in script
    assert "`/tune/csv/${" in script
    assert OTHERS_IN_SCRIPT.findall(script) == []


def test_the_script_is_packed_once_and_not_sent_again_to_who_has_it(visit):
    packed = visit("/static/bundle.js", accept_encoding="gzip")
    assert gzip.decompress(packed.body) == visit("/static/bundle.js").body
    assert visit("/static/bundle.js", if_none_match=packed.headers["ETag"]).status == 304
    assert visit("/static/bundle.js", "HEAD").body == b""


def test_all_else_is_as_without_a_prefix(visit):
    assert visit("/api/studies").json()["study_summaries"][0]["study_name"] == "study"
    assert visit("/csv/1").status == 200
    assert visit("/nothing").status == 404
    assert visit("/api/studies/1", "DELETE").status == 403


@pytest.mark.parametrize(
    "change",
    [
        {'url_prefix:"/dashboard"': 'url_prefix:"/board"'},
        {"${this.baseURL}/api/": "${this.root}/api/"},
        {"`/csv/${": "`/download/${"},
        {"`/csv/${": 'x("/api/new")+`/csv/${'},
    ],
    ids=["pages", "requests", "downloads", "a new one"],
)
def test_the_page_of_a_version_that_names_its_paths_otherwise_is_left_out(tmp_path, change):
    ((before, after),) = change.items()
    script = (FOLDER / "public" / "bundle.js").read_text(encoding="utf-8")
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "bundle.js").write_text(script.replace(before, after), encoding="utf-8")
    (tmp_path / "index.html").write_text((FOLDER / "index.html").read_text(encoding="utf-8"), encoding="utf-8")
    prefixed = Prefixed(lambda environ, start: [], "/tune", tmp_path)
    assert not prefixed.is_possible
    for path in ("/", "/dashboard", "/dashboard/studies/1"):
        assert Visitor(prefixed)(path).headers["Location"] == "/tune/answers"


@pytest.mark.parametrize(
    "prefix",
    ["tune", "/tune space", "//tune", "/tune//x", "/../x", "/tune'", "/tüne", "http://x", "/dashboard", "/answers/x"],
)
def test_what_is_no_path_is_refused(url, prefix):
    with pytest.raises(UsageError, match="write it like /tune"):
        make_app(url, prefix=prefix)


def test_a_prefix_may_have_parts_and_a_slash_at_its_end():
    assert checked_prefix("/our/tune-2/") == "/our/tune-2"
    assert checked_prefix("/answers-of-ours") == "/answers-of-ours"
    assert checked_prefix("/") == checked_prefix("") == ""


def test_a_proxy_may_keep_the_prefix_or_take_it_away(url):
    with listen(make_app(url, prefix="/tune"), "127.0.0.1", 0, prefix="/tune") as address:
        assert urlsplit(address).path == "/tune/"
        for path in ("/tune/api/studies", "/api/studies", "/tune/healthz", "/healthz"):
            server = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port, timeout=20)
            server.request("GET", path)
            assert server.getresponse().status == 200
            server.close()

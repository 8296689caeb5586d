"""The crawler against a real web server full of traps: what it follows, what it leaves alone, and where it ends."""

from __future__ import annotations

import gzip
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from crawl_support import archived, crawl, done, page, states
from web_support import Answer, Page, served

from liuyi.data.sources.crawl import crawler as crawler_module
from liuyi.data.sources.crawl.pages import read_sitemap
from waiting import wait_for


def test_links_are_followed_and_each_page_is_fetched_once(tmp_path: Path) -> None:
    pages: dict[str, Page] = {
        "/": page("home", "/a", "a/../b", "/a#part", "/a?utm_source=x", "HTTP://127.0.0.1/c", "mailto:x@y", "/missing"),
        "/a": page("a", "/", "/b", "/deep/c?z=1&y=2", "https://elsewhere.example/"),
        "/b": page("b", "/deep/c?y=2&z=1"),
        "/deep/c?y=2&z=1": page("c"),
    }
    with served(pages) as site:
        crawler = crawl(site, tmp_path)
        assert done(crawler, site) == {"/", "/a", "/b", "/deep/c?y=2&z=1"}
        assert Counter(site.paths()) == Counter(["/", "/a", "/b", "/deep/c?y=2&z=1", "/missing"])
        assert states(crawler, site)["/missing"] == ("failed", "the answer was HTTP 404")
        assert sorted(archived(tmp_path)) == sorted(site.url + path for path in done(crawler, site))
        assert all("liuyi" in headers["User-Agent"] for headers in site.headers)


def test_robots_are_obeyed(tmp_path: Path) -> None:
    robots = (
        b"User-agent: *\nDisallow: /\n\nUser-agent: liuyi\nDisallow: /private\nAllow: /private/open\nCrawl-delay: 0.2\n"
    )
    pages: dict[str, Page] = {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, robots),
        "/": page("home", "/private/a", "/private/open", "/b", "/c"),
        "/private/*": page("private"),
        "/private/open": page("open"),
        "/b": page("b"),
        "/c": page("c"),
    }
    with served(pages) as site:
        began = time.monotonic()
        crawler = crawl(site, tmp_path)
        took_s = time.monotonic() - began
        assert done(crawler, site) == {"/", "/private/open", "/b", "/c"}
        assert "/private/a" not in site.paths()
        assert states(crawler, site)["/private/a"] == ("refused", "robots.txt forbids it")
        assert took_s >= 0.2 * (len(site.requests) - 1)


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (503, False)])
def test_robots_that_cannot_be_had(status: int, allowed: bool, tmp_path: Path) -> None:
    with served({"/robots.txt": (status, {}, b""), "/": page("home")}) as site:
        crawler = crawl(site, tmp_path)
        assert (done(crawler, site) == {"/"}) == allowed
        if not allowed:
            assert site.paths() == []
            assert states(crawler, site)["/"] == ("refused", f"robots.txt cannot be had: HTTP {status}")


def test_robots_behind_a_redirect(tmp_path: Path) -> None:
    pages: dict[str, Page] = {
        "/robots.txt": (301, {"Location": "/rules.txt"}, b""),
        "/rules.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /"),
        "/": page("home"),
    }
    with served(pages) as site:
        assert done(crawl(site, tmp_path), site) == set()


@pytest.mark.slow
def test_one_request_at_a_time_and_no_faster_than_asked(tmp_path: Path) -> None:
    def slow(request: BaseHTTPRequestHandler) -> str:
        time.sleep(0.1)
        return page(request.path)

    def together(request: BaseHTTPRequestHandler) -> str:
        wait_for(lambda: site.most_open == 3)
        return page(request.path)

    home = page("home", *(f"/{n}" for n in range(6)))
    pages: dict[str, Page] = {"/robots.txt": (404, {}, b""), "/": home, "/*": slow}
    with served(pages) as site:
        began = time.monotonic()
        crawler = crawl(site, tmp_path / "one", per_host=1, delay_s=0.05)
        took_s = time.monotonic() - began
        assert len(done(crawler, site)) == 7
        assert site.most_open == 1
        assert took_s >= 0.05 * (len(site.requests) - 1)
        pages["/*"] = together
        crawl(site, tmp_path / "three", per_host=3, timeout_s=60.0)
        assert site.most_open == 3


def test_sitemaps(tmp_path: Path) -> None:
    def listing(kind: str, *places: str) -> bytes:
        return (
            f'<?xml version="1.0"?><{kind} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
            + "".join(f"<x><loc>{place}</loc></x>" for place in places).replace(
                "x>", "url>" if kind == "urlset" else "sitemap>"
            )
            + f"</{kind}>"
        ).encode()

    pages: dict[str, Page] = {"/": page("home"), "/listed/*": lambda request: page(request.path)}
    with served(pages) as site:
        xml = {"Content-Type": "application/xml"}
        pages["/robots.txt"] = (200, {}, f"Sitemap: {site.url}/index.xml\n".encode())
        places = [f"{site.url}/part.xml.gz", f"{site.url}/list.txt", "https://elsewhere.example/map.xml"]
        pages["/index.xml"] = (200, xml, listing("sitemapindex", *places, f"{site.url}/index.xml"))
        pages["/part.xml.gz"] = (
            200,
            {},
            gzip.compress(listing("urlset", f"{site.url}/listed/1", f"{site.url}/listed/2")),
        )
        pages["/list.txt"] = (
            200,
            {"Content-Type": "text/plain"},
            f"{site.url}/listed/3\nhttps://other.example/".encode(),
        )
        crawler = crawl(site, tmp_path)
        assert {"/", "/listed/1", "/listed/2", "/listed/3"} <= done(crawler, site)
        assert Counter(site.paths()).most_common(1)[0][1] == 1
        without = crawl(site, tmp_path / "without", sitemaps=False)
        assert done(without, site) == {"/"}


@pytest.mark.slow
def test_sitemaps_that_attack() -> None:
    bomb = b'<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">'.encode() for n in range(9)
    )
    bomb += b"]><urlset><url><loc>http://a.example/&j;</loc></url></urlset>"
    external = b'<!DOCTYPE z [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>http://a.example/&x;</loc></url></urlset>'
    for data in (bomb, external, b"<urlset><url><loc>http://a", b"\x1f\x8bnot gzip", b"", b"<" * 10_000, b"\x00" * 100):
        pages, sitemaps = read_sitemap(data, "http://a.example/")
        assert sum(map(len, pages + sitemaps)) < 200
        assert "root" not in "".join(pages)
    many = (
        b"<urlset>" + b"".join(b"<url><loc>http://a.example/%d</loc></url>" % n for n in range(60_000)) + b"</urlset>"
    )
    assert len(read_sitemap(many, "http://a.example/")[0]) == 50_000


def test_traps_end(tmp_path: Path) -> None:
    """Folders inside folders, a calendar without end, one page under endless names, redirects in a circle."""

    def folder(request: BaseHTTPRequestHandler) -> str:
        return page(f"folder {request.path}", "loop/", "../loop/loop/")

    def calendar(request: BaseHTTPRequestHandler) -> str:
        day = int(request.path.rpartition("=")[2])
        return page(f"day {day}", f"/calendar?day={day + 1}")

    def circle(request: BaseHTTPRequestHandler) -> Answer:
        return 302, {"Location": f"/round/{int(request.path.rpartition('/')[2]) + 1}"}, b""

    pages: dict[str, Page] = {
        "/": page("home", "/loop/", "/calendar?day=1", "/same/1", "/round/1", "/self"),
        "/loop/*": folder,
        "/calendar*": calendar,
        "/same/*": page("always the same", "/same/2", "/same/3", "/same/4"),
        "/round/*": circle,
        "/self": (301, {"Location": "/self"}, b""),
    }
    with served(pages) as site:
        crawler = crawl(site, tmp_path, max_depth=12)
        found = states(crawler, site)
        kept = done(crawler, site)
        assert len([path for path in kept if path.startswith("/loop")]) == 3
        assert len([path for path in kept if path.startswith("/calendar")]) == 12
        assert len([path for path in kept if path.startswith("/same")]) == 1
        assert found["/round/6"] == ("refused", "more than 5 redirects")
        assert found["/self"][0] == "moved"
        assert {reason for state, reason in found.values() if "trap" in reason} == {
            "a trap: the same folder more than 3 times"
        }
        assert found["/calendar?day=13"] == ("refused", "more than 12 links from the start")
        assert any(reason.startswith("the same page as") for _, reason in found.values())


@pytest.mark.slow
def test_pages_that_are_too_much(tmp_path: Path) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        for _ in range(400):
            request.wfile.write(b"x" * 10_000)

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        for _ in range(80):
            request.wfile.write(b"<p>")
            request.wfile.flush()
            time.sleep(0.1)

    bomb = gzip.compress(b"a" * 20_000_000)
    pages: dict[str, Page] = {
        "/": page("home", "/endless", "/drip", "/said", "/bomb", "/picture", "/broken", "/hangs-up", "/fine"),
        "/endless": endless,
        "/drip": drip,
        "/said": (200, {"Content-Type": "text/html", "Content-Length": "99000000"}, b"short"),
        "/bomb": (200, {"Content-Type": "text/html", "Content-Encoding": "gzip"}, bomb),
        "/picture": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
        "/broken": (200, {"Content-Type": "text/html", "Content-Encoding": "gzip"}, b"no gzip"),
        "/hangs-up": lambda request: None,
        "/fine": page("fine"),
    }
    with served(pages) as site:
        crawler = crawl(site, tmp_path, max_page_bytes=1_000_000, timeout_s=2.0, per_host=8)
        assert done(crawler, site) == {"/", "/fine"}
        reasons = {path: reason for path, (_, reason) in states(crawler, site).items()}
        assert reasons["/endless"] == reasons["/said"] == "longer than 1 MB"
        assert reasons["/drip"] == "no whole answer within 2 s"
        assert reasons["/bomb"] == "longer than 1 MB once unpacked"
        assert reasons["/picture"] == "not a page: image/png"
        assert reasons["/broken"] == "its content encoding is damaged"
        assert reasons["/hangs-up"].startswith("no sound answer")


def test_bounds_are_met_exactly(tmp_path: Path) -> None:
    pages: dict[str, Page] = {
        "/": page("home", *(f"/{n}" for n in range(50))),
        "/*": lambda request: page(request.path),
    }
    with served(pages) as site:
        crawler = crawl(site, tmp_path / "pages", max_pages=10, per_host=8)
        assert len(done(crawler, site)) == 10
        left = [reason for state, reason in states(crawler, site).values() if state == "refused"]
        assert "not fetched: the bound of 10 pages is reached" in left
        crawler = crawl(site, tmp_path / "host", max_pages_per_host=7, per_host=8)
        assert len(done(crawler, site)) == 7
        left = {reason for state, reason in states(crawler, site).values() if state == "refused"}
        assert left == {"not fetched: the bound of 7 pages a host is reached"}
        crawler = crawl(site, tmp_path / "depth", max_depth=0)
        assert done(crawler, site) == {"/"}
        crawler = crawl(site, tmp_path / "bytes", max_bytes=3000)
        assert 1 < len(done(crawler, site)) < 12


def test_passing_failures_are_tried_again(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    def moody(request: BaseHTTPRequestHandler) -> Answer | str:
        tries[request.path] += 1
        if tries[request.path] < 3:
            return (429, {"Retry-After": "0"}, b"") if request.path == "/busy" else (503, {}, b"")
        return page(request.path)

    pages: dict[str, Page] = {"/": page("home", "/busy", "/ill", "/dead"), "/*": moody, "/dead": (500, {}, b"")}
    with served(pages) as site:
        crawler = crawl(site, tmp_path)
        assert done(crawler, site) == {"/", "/busy", "/ill"}
        assert site.paths().count("/dead") == 3
        assert states(crawler, site)["/dead"] == ("failed", "the answer was HTTP 500")


def test_headers_that_make_no_sense_end_no_crawl(tmp_path: Path) -> None:
    pages: dict[str, Page] = {
        "/robots.txt": (302, {"Location": "http://[rules"}, b""),
        "/": page("home", "/lost", "/busy", "/fine"),
        "/lost": (301, {"Location": "http://[::1"}, b""),
        "/busy": (429, {"Retry-After": "²".encode().decode("latin-1")}, b""),
        "/fine": page("fine"),
    }
    with served(pages) as site:
        crawler = crawl(site, tmp_path)
        assert done(crawler, site) == {"/", "/fine"}
        assert states(crawler, site)["/lost"] == ("refused", "redirects to 'http://[::1'")
        assert states(crawler, site)["/busy"] == ("failed", "the answer was HTTP 429")


def test_sitemaps_without_end_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawler_module, "_MOST_SITEMAPS_PER_HOST", 3)

    def children(request: BaseHTTPRequestHandler) -> Answer:
        places = "".join(f"<sitemap><loc>{request.path[:-4]}{n}.xml</loc></sitemap>" for n in range(9))
        return 200, {"Content-Type": "application/xml"}, f"<sitemapindex>{places}</sitemapindex>".encode()

    with served({"/": page("home"), "/sitemap*": children}) as site:
        crawler = crawl(site, tmp_path, per_host=1)
        assert len([path for _, path in site.requests if path.startswith("/sitemap")]) == 3
        reasons = Counter(reason for path, (_, reason) in states(crawler, site).items() if path.endswith(".xml"))
        assert reasons == {"": 3, "more than 3 sitemaps of a host": 1}


def test_the_wishes_of_pages(tmp_path: Path) -> None:
    pages: dict[str, Page] = {
        "/": page("home", "/noindex", "/nofollow", "/header", "/copy?x=1", "/copy?x=2", "/pair/1", "/rel"),
        "/noindex": page("secret", "/behind", head='<meta name="robots" content="noindex">'),
        "/behind": page("behind"),
        "/nofollow": page("open", "/hidden", head='<meta name="ROBOTS" content="nofollow">'),
        "/header": (200, {"Content-Type": "text/html", "X-Robots-Tag": "noindex"}, b"<p>not to be kept"),
        "/copy*": lambda request: page(f"copy {request.path}", head='<link rel="canonical" href="/original">'),
        "/original": page("original", head='<link rel="canonical" href="/original">'),
        "/pair/1": page("one", head='<link rel="canonical" href="/pair/2">'),
        "/pair/2": page("two", head='<link rel="canonical" href="/pair/1">'),
        "/rel": '<body><p>rel</p><a rel="nofollow" href="/hidden">x</a></body>',
        "/hidden": page("hidden"),
    }
    with served(pages) as site:
        crawler = crawl(site, tmp_path)
        assert done(crawler, site) == {"/", "/behind", "/nofollow", "/original", "/pair/2", "/rel"}
        assert "/hidden" not in site.paths()
        assert "noindex" in states(crawler, site)["/header"][1]

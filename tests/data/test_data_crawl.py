"""The crawler against a real web server full of traps; killed in the middle, it goes on and fetches nothing twice."""

from __future__ import annotations

import functools
import gzip
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import aiohttp
import pyarrow.parquet as pq
import pytest
from data_support import run_step
from fastwarc.warc import ArchiveIterator
from hypothesis import given, settings
from hypothesis import strategies as st
from web_support import Answer, Page, Site, served

from liuyi.core.errors import DataError
from liuyi.data.corpus import REJECTED, read_documents
from liuyi.data.sources.crawl.address import Policy, RefusedAddress
from liuyi.data.sources.crawl.crawler import Crawler, Plan
from liuyi.data.sources.crawl.pages import read_links, read_sitemap
from liuyi.data.sources.crawl.urls import canonical, looks_like_a_trap

LOCAL = ("127.0.0.1",)


def page(text: str, *links: str, head: str = "") -> str:
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    return f"<html><head><title>t</title>{head}</head><body><p>{text}</p>{anchors}</body></html>"


def crawl(site: Site, folder: Path, *start: str, **plan: object) -> Crawler:
    given = {"delay_s": 0.0, "per_host": 4, "timeout_s": 5.0, "allow_networks": LOCAL} | plan
    lookup = given.pop("lookup", None)
    addresses = tuple(f"{site.url}{path}" if path.startswith("/") else path for path in start or ("/",))
    crawler = Crawler(Plan(addresses, **given), folder, lookup)  # type: ignore[arg-type]
    crawler.run()
    return crawler


def states(crawler: Crawler, site: Site) -> dict[str, tuple[str, str]]:
    """(state, reason) by path."""
    return {visit.url.removeprefix(site.url): (visit.state, visit.reason) for visit in crawler.frontier.visits()}


def done(crawler: Crawler, site: Site) -> set[str]:
    return {path for path, (state, _) in states(crawler, site).items() if state == "done" and not path.endswith(".xml")}


def archived(folder: Path) -> list[str]:
    """The addresses of the responses in the archive, as another reader sees them."""
    found = []
    for path in sorted((folder / "warc").glob("*.warc.gz")):
        with path.open("rb") as file:
            for record in ArchiveIterator(file):
                if str(record.record_type) == "response":
                    found.append(record.headers["WARC-Target-URI"])
    return found


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
        crawler = crawl(site, tmp_path)
        assert done(crawler, site) == {"/", "/private/open", "/b", "/c"}
        assert "/private/a" not in site.paths()
        assert states(crawler, site)["/private/a"] == ("refused", "robots.txt forbids it")
        times = [moment for moment, _ in site.requests]
        assert min(later - earlier for earlier, later in pairwise(times)) > 0.18


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

    pages: dict[str, Page] = {"/": page("home", *(f"/{n}" for n in range(6))), "/*": slow}
    with served(pages) as site:
        crawler = crawl(site, tmp_path / "one", per_host=1, delay_s=0.05)
        assert len(done(crawler, site)) == 7
        assert site.most_open == 1
        times = [moment for moment, _ in site.requests]
        assert min(later - earlier for earlier, later in pairwise(times)) > 0.045
        crawl(site, tmp_path / "three", per_host=3)
        assert 1 < site.most_open <= 3


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


def test_private_addresses_are_refused(tmp_path: Path) -> None:
    """Directly, by a link, behind a redirect and behind a name; with numbers written in any way."""
    with served({"/": page("secret"), "/*": page("secret")}) as secret:
        port = secret.address.rpartition(":")[2]
        direct = [
            f"http://{host}:{port}/" for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]")
        ]
        crawler = crawl(secret, tmp_path / "direct", *direct, allow_networks=())
        assert crawler.frontier.count("done") == 0
        assert all(visit.state == "refused" for visit in crawler.frontier.visits() if "::1" not in visit.url)
        assert secret.requests == []
        with served({}, host="127.0.0.2") as front:
            front.pages["/"] = page("front", f"{secret.url}/link", "/go")
            front.pages["/go"] = (302, {"Location": f"{secret.url}/target"}, b"")
            hosts = (front.address, secret.address)
            crawler = crawl(front, tmp_path / "behind", allow_networks=("127.0.0.2/32",), hosts=hosts)
            assert done(crawler, front) == {"/"}
            found = states(crawler, secret)
            for path in ("/link", "/target"):
                assert found[path] == ("refused", "127.0.0.1 leads to 127.0.0.1, which is not a public address")
            assert secret.requests == []
            start = crawl(front, tmp_path / "start", "/go", allow_networks=("127.0.0.2/32",))
            assert start.frontier.count("done") == 0
            assert secret.requests == []


def test_a_name_that_changes_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the first answer is allowed, later ones lead inside; each connection uses what was checked."""
    asked: list[str] = []

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    def closing(request: BaseHTTPRequestHandler) -> Answer:
        time.sleep(0.3)
        links = "".join(f'<a href="/{n}">x</a>' for n in range(3))
        return 200, {"Content-Type": "text/html", "Connection": "close"}, f"<p>{request.path}</p>{links}".encode()

    with served({"/*": page("secret")}) as inside:
        port = int(inside.address.rpartition(":")[2])
        with served(
            {"/*": closing, "/robots.txt": (404, {"Connection": "close"}, b"")}, host="127.0.0.2", port=port
        ) as front:
            start = f"http://rebinds.example:{port}/"
            forgetful = functools.partial(aiohttp.TCPConnector, use_dns_cache=False)
            monkeypatch.setattr(aiohttp, "TCPConnector", forgetful)
            crawler = crawl(front, tmp_path, start, lookup=lookup, allow_networks=("127.0.0.2",))
            assert len(asked) > 1
            assert front.requests
            assert inside.requests == []
            reasons = [visit.reason for visit in crawler.frontier.visits()]
            assert any("rebinds.example leads to 127.0.0.1" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
    ],
)
def test_addresses(address: str, allowed: bool) -> None:
    if allowed:
        Policy().check("x", address)
        return
    with pytest.raises(RefusedAddress, match="not a public address"):
        Policy().check("x", address)


def test_networks_are_allowed_by_name() -> None:
    policy = Policy(("10.0.0.0/8", "::1"))
    policy.check("x", "10.1.1.1")
    policy.check("x", "::1")
    with pytest.raises(RefusedAddress):
        policy.check("x", "192.168.0.1")
    with pytest.raises(DataError, match="not a network"):
        Policy(("10.0.0.0/33",))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://Example.COM", "http://example.com/"),
        ("https://example.com:443/a/./b/../c", "https://example.com/a/c"),
        ("http://example.com:8080/", "http://example.com:8080/"),
        ("http://example.com/a#frag", "http://example.com/a"),
        ("http://example.com/?b=2&a=1&utm_medium=x&fbclid=y", "http://example.com/?a=1&b=2"),
        ("http://example.com/%7euser/%e4%b8%ad", "http://example.com/~user/%E4%B8%AD"),
        ("http://example.com/中 文", "http://example.com/%E4%B8%AD%20%E6%96%87"),
        ("http://例子.测试/", "http://xn--fsqu00a.xn--0zwm56d/"),
        ("http://example.com./a//b", "http://example.com/a/b"),
        ("http://example.com/a;jsessionid=1A2B?x=%2f", "http://example.com/a?x=%2F"),
        ("http://[2606:4700::1]:80/", "http://[2606:4700::1]/"),
        ("ftp://example.com/", None),
        ("javascript:alert(1)", None),
        ("http://user:pw@example.com/", None),
        ("http://", None),
        ("http://[bad/", None),
        ("http://example.com:99999/", None),
    ],
)
def test_canonical_addresses(url: str, expected: str | None) -> None:
    assert canonical(url) == expected
    if expected:
        assert canonical(expected) == expected


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("abc/.%2fE?&=#;: 中@[]\\"), max_size=40))
def test_canonical_is_final(rest: str) -> None:
    once = canonical(f"http://example.com/{rest}")
    if once is not None:
        assert canonical(once) == once


def test_links_of_a_page() -> None:
    html = '<base href="/base/"><a href="x">1</a><a href="../y?b=1&amp;a=2">2</a><a href=" #top ">3</a><a>4</a>'
    html += '<area href="//o.example/z">'
    found = read_links(html, "http://a.example/q")
    assert found.links == [
        "http://a.example/base/x",
        "http://a.example/y?a=2&b=1",
        "http://a.example/base/",
        "http://o.example/z",
    ]
    assert read_links("", "http://a.example/").links == []
    assert looks_like_a_trap("http://a.example/" + "x/" * 4)
    assert looks_like_a_trap("http://a.example/?" + "&".join(f"p{n}={n}" for n in range(9)))
    assert not looks_like_a_trap("http://a.example/a/b/a/c?x=1")


DRILL = """
import json, sys
from pathlib import Path
from liuyi.data.sources.crawl.crawler import Crawler, Plan
plan = Plan((sys.argv[2],), delay_s=0.0, per_host=3, timeout_s=5.0, allow_networks=("127.0.0.1",))
crawler = Crawler(plan, Path(sys.argv[1]), on_page=lambda pages: print(pages, flush=True))
crawler.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_killed_and_resumed(torn: bool, tmp_path: Path) -> None:
    """`kill -9` three times, also with a page half written: what lies in the archive is not asked for again."""

    def slow(request: BaseHTTPRequestHandler) -> str:
        time.sleep(0.02)
        number = int(request.path.strip("/") or 0)
        return page(
            f"page {number} " + "words " * 200, *(f"/{next}" for next in (2 * number + 1, 2 * number + 2) if next < 60)
        )

    with served({"/*": slow, "/robots.txt": (404, {}, b"")}) as site:
        command = [sys.executable, "-c", DRILL, str(tmp_path), f"{site.url}/"]
        for stop in (8, 25, 40):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout
            for line in process.stdout:
                if int(line) >= stop:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            process.wait(20)
            process.stdout.close()
            kept = archived(tmp_path)
            assert len(kept) >= stop
            if torn:
                (last,) = (tmp_path / "warc").glob("*.warc.gz")
                data = last.read_bytes()
                last.write_bytes(data + data[400:900])
            asked_before = len(site.requests)
            time.sleep(0.1)
        done_process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done_process.returncode == 0, done_process.stderr
        asked = [site.url + path for _, path in site.requests[asked_before:]]
        assert not set(asked) & set(kept)
        assert sorted(archived(tmp_path)) == sorted({f"{site.url}/{number or ''}" for number in range(60)})
        again = [path for path, times in Counter(site.paths()).items() if times > 1]
        assert len(again) <= 9  # three were under way at each of three kills


def test_pages_behind_the_known_end_are_learnt_from(tmp_path: Path) -> None:
    """Killed after the archive was written and before the frontier heard of it: the page and its links are found."""
    with served({"/": page("home", "/a"), "/a": page("a", "/b"), "/b": page("b")}) as site:
        crawler = crawl(site, tmp_path, max_pages=2)
        assert done(crawler, site) == {"/", "/a"}
        crawler.frontier._db.execute("update urls set state = 'waiting' where url like '%/a'")
        crawler.frontier._db.execute("delete from urls where url like '%/b'")
        crawler.frontier.keep_end("crawl-00000.warc.gz", 0)
        crawler.frontier.close()
        again = crawl(site, tmp_path)
        assert done(again, site) == {"/", "/a", "/b"}
        assert Counter(site.paths()) == Counter(["/", "/a", "/b"])


def test_the_step(tmp_path: Path) -> None:
    words = "The miller opened the gate when the tide had turned, and the wheel began to move slowly. "
    pages: dict[str, Page] = {
        "/": page(words * 4, "/zh", "/plain.txt", "/gone", "/empty"),
        "/zh": (
            200,
            {"Content-Type": "text/html; charset=gb2312"},
            f"<p>{'数据库在写入之前会先把修改记录到日志里。' * 5}".encode("gbk"),
        ),
        "/plain.txt": (200, {"Content-Type": "text/plain"}, words.encode()),
        "/empty": page(""),
    }
    with served(pages) as site:
        given = {
            "delay_s": 0,
            "allow_networks": LOCAL,
            "extractor": "plain",
            "license": "CC-BY-4.0",
            "contact": "a@b.example",
        }
        bench = run_step("data.crawl", tmp_path, start=[site.url], **given)
    made = bench.made["corpus"]
    documents = {row["url"].removeprefix(site.url): row for row in read_documents(made.path).to_pylist()}
    assert set(documents) == {"/", "/zh", "/plain.txt"}
    assert "数据库" in documents["/zh"]["text"]
    assert {(row["source"], row["cluster"], row["license"]) for row in documents.values()} == {
        (site.address, site.address, "CC-BY-4.0")
    }
    assert documents["/"]["created"].startswith("20")
    rejected = {row["file"]: (row["reason"], row["head"]) for row in pq.read_table(made.file(REJECTED)).to_pylist()}
    assert rejected[f"{site.url}/gone"] == ("the answer was HTTP 404", f"{site.url}/")
    assert ("no text in it", f"{site.url}/empty") in rejected.values()
    assert {entry.path for entry in made.manifest.files} >= {
        "warc/crawl-00000.warc.gz",
        "urls.parquet",
        "robots.parquet",
    }
    urls = pq.read_table(made.file("urls.parquet")).to_pylist()
    assert {row["url"].removeprefix(site.url): row["state"] for row in urls}["/zh"] == "done"
    (robots,) = pq.read_table(made.file("robots.parquet")).to_pylist()
    assert (robots["origin"], robots["status"]) == (site.url, 404)
    assert "+a@b.example" in site.headers[0]["User-Agent"]
    archive = run_step("data.files", tmp_path / "again", path=made.file("warc"), extractor="plain").made["corpus"]
    assert [row["text"] for row in read_documents(archive.path).to_pylist()] == [
        row["text"] for row in documents.values()
    ]


def test_a_start_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an address to crawl"):
        run_step("data.crawl", tmp_path, start=["ftp://example.org"])
    with pytest.raises(DataError, match="no page could be kept") as caught:
        run_step("data.crawl", tmp_path / "b", start=["http://127.0.0.1:9/"], delay_s=0)
    assert "not a public address" in caught.value.hint

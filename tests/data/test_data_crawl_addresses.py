"""Which addresses the crawler goes to, what it takes for the same address, and the links that it finds in a page."""

from __future__ import annotations

import functools
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import aiohttp
import pytest
from crawl_support import crawl, done, page, states
from hypothesis import given, settings
from hypothesis import strategies as st
from web_support import Answer, served

from liuyi.core.errors import DataError
from liuyi.data.sources.crawl.address import Policy, RefusedAddress
from liuyi.data.sources.crawl.pages import read_links
from liuyi.data.sources.crawl.urls import canonical, looks_like_a_trap


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

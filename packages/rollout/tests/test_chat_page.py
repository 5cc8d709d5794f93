"""The chat page as a service sends it: whole, and with nothing from elsewhere."""

import re

import pytest

from posttrain.rollout.chat_page import PAGE_PATHS


@pytest.fixture
def page(client):
    return {path: client.send("GET", path) for path in PAGE_PATHS}


def test_every_file_comes_with_a_policy_that_lets_nothing_else_in(page):
    for path, response in page.items():
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_refers_to_its_own_files_only(page):
    for response in page.values():
        assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"(?m)^\s*//.*|/\*.*?\*/", "", response.text))
    named = set(re.findall(r'(?:href|src|from)[= ]"(/[^"]*)"', "".join(r.text for r in page.values())))
    assert named == PAGE_PATHS - {"/chat"}


def test_the_page_has_no_script_or_style_inside_that_the_policy_would_forbid(page):
    html = page["/chat"].text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", html)
    assert "innerHTML" not in page["/chat/page.js"].text


def test_the_page_is_not_part_of_the_described_api(client):
    assert not any(path.startswith("/chat") for path in client.app.openapi()["paths"])

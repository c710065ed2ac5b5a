"""The README's tour: several pictures in one animated SVG."""

import re
from xml.etree import ElementTree

from dpwatch.demo.screenshots import SHOWN_S, animated

PICTURE = '<svg viewBox="0 0 30 20" xmlns="http://www.w3.org/2000/svg"><text>{}</text></svg>'


def test_pictures_are_shown_in_turn_and_the_first_without_animation():
    tour = animated([PICTURE.format(name) for name in ("dp", "ddp", "compare")])
    root = ElementTree.fromstring(tour)
    frames = [each for each in root if each.get("class") == "frame"]
    assert ["".join(each.itertext()).strip() for each in frames] == ["dp", "ddp", "compare"]
    delays = [int(re.search(r"(\d+)s", each.get("style"))[1]) for each in frames]
    assert delays == [0, SHOWN_S, 2 * SHOWN_S]
    assert root.get("viewBox") == "0 0 30 20"
    style = root[0].text
    assert f"turn {3 * SHOWN_S}s step-end infinite" in style
    assert "33.3333%, 100% { visibility: hidden }" in style
    assert ".frame:first-of-type { visibility: visible }" in style

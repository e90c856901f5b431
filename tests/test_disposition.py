"""Names of files as browsers are told them."""

import pytest

from safelight.storage import inline


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a lighthouse.png", 'inline; filename="a lighthouse.png"'),
        (
            'a"\r\nSet-Cookie: x=y.png',
            "inline; filename=\"a-Set-Cookie- x-y.png\"; filename*=UTF-8''a-Set-Cookie-%20x%3Dy.png",
        ),
        ("\u202egnp.exe", 'inline; filename="gnp.exe"'),
        ("phare \u00e0.png", "inline; filename=\"phare a.png\"; filename*=UTF-8''phare%20%C3%A0.png"),
        ("\u706f\u53f0.png", "inline; filename=\"png\"; filename*=UTF-8''%E7%81%AF%E5%8F%B0.png"),
        ("100%.png", "inline; filename=\"100-.png\"; filename*=UTF-8''100%25.png"),
        ("../../etc/passwd", 'inline; filename="-..-etc-passwd"'),
        ("C:\\x\\y.png", 'inline; filename="C--x-y.png"'),
        ("\0\x7f\x85", 'inline; filename="file"'),
        ("\ud800", 'inline; filename="file"'),
        ("", 'inline; filename="file"'),
        ("x" * 300 + ".png", f'inline; filename="{"x" * 146}.png"'),
    ],
)
def test_any_name_is_told_safely(name: str, told: str) -> None:
    assert inline(name) == told
    assert told.isascii()
    assert told.isprintable()

"""Webhooks go to receivers, and to no address that gives secrets away."""

from ipaddress import ip_address

import pytest

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.posting import post, why_refused


@pytest.mark.parametrize(
    ("address", "is_tls", "is_refused"),
    [
        ("169.254.169.254", True, True),
        ("169.254.169.254", False, True),
        ("fe80::1", True, True),
        ("fd00:ec2::254", True, False),
        ("0.0.0.0", False, True),
        ("224.0.0.1", True, True),
        ("240.0.0.1", True, True),
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("10.1.2.3", False, False),
        ("8.8.8.8", False, True),
        ("8.8.8.8", True, False),
    ],
)
def test_addresses_are_judged_before_they_are_connected_to(
    address: str, is_tls: bool, is_refused: bool
) -> None:
    assert (why_refused(ip_address(address), is_tls=is_tls) is not None) == is_refused


@pytest.mark.parametrize(
    "url", ["https://169.254.169.254/latest", "http://[::ffff:169.254.169.254]/", "http://0/"]
)
def test_a_refused_address_gets_no_connection(url: str) -> None:
    with pytest.raises(DeliveryRefused) as caught:
        post(url, b"{}", {}, 1.0)
    assert caught.value.reason == "address_refused"


def test_a_receiver_that_is_away_is_tried_again_without_doubt() -> None:
    with pytest.raises(ChannelUnavailable) as caught:
        post("http://127.0.0.1:1/", b"{}", {}, 1.0)
    assert not caught.value.is_doubtful

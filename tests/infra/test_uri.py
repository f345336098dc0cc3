"""What of an address may be shown: all but user and password, however odd they are."""

from __future__ import annotations

import pytest

from infra.uri import masked, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://mlflow:s3cret@db.corp/mlflow", "postgresql://***@db.corp/mlflow"),
        ("mysql+pymysql://a:s3cret@db:3306/m?x=1", "mysql+pymysql://***@db:3306/m?x=1"),
        ("http://jane@mlflow.corp:5000", "http://***@mlflow.corp:5000"),
        ("http://:s3cret@mlflow.corp", "http://***@mlflow.corp"),
        ("https://u:s3@cret@[2001:db8::5]:80/x", "https://***@[2001:db8::5]:80/x"),
        ("postgresql://u:s3/cret?#@db.corp/x", "postgresql://***@db.corp/x"),
        ("http://u:s3/cret@h:5000/x", "http://***@h:5000/x"),
        ("postgresql://db/m?user=u&password=p&x=1", "postgresql://db/m?user=***&password=***&x=1"),
        ("http://***@mlflow.corp:5000", "http://***@mlflow.corp:5000"),
    ],
)  # fmt: skip
def test_user_and_password_go_and_the_rest_stays(uri: str, shown: str) -> None:
    assert masked(uri) == masked(shown) == shown
    assert masked(f"asked '{uri}', in vain") == f"asked '{shown}', in vain"


@pytest.mark.parametrize(
    "text",
    [
        "http://mlflow.corp:5000/#/experiments/1?who=a@b",
        "http://[2001:db8::5]:80/x@y",
        "sqlite:////home/me@corp/a:b@c/mlflow.db",
        "s3://bucket/key@version, mail to jane@corp.example",
        "http://h:5000: no answer, ask jane@corp.example",
        "vm:ML@esx-1 12:34:56",
        "",
    ],
)
def test_what_holds_no_user_is_left_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("password", ["s3cret", "s3%2Fcret", "it's", "p@ss"])
def test_a_password_that_stands_alone_goes_too(password: str) -> None:
    uri = f"postgresql://mlflow:{password}@db.corp/mlflow"
    meant = password.replace("%2F", "/")
    told = without_secrets(f"{uri}: {meant!r} and {meant} and {password} refused", uri)
    assert told.startswith("postgresql://***@db.corp/mlflow: ")
    assert password not in told
    assert meant not in told
    assert told.endswith("refused")

"""The object is the setting: there and back through YAML, and what is misspelt is answered with what was meant."""

import math

import pytest
import stand_in.recipe as stand_in
from hypothesis import given
from hypothesis import strategies as st
from stand_in.loud import Loud
from stand_in.quiet import Quiet

from datafree.recipes.settings import build, describe, from_yaml, merge, overrides, settings_of, to_yaml
from datafree.spec import Refusal

voices = st.one_of(
    st.builds(Loud, volume=st.floats(0.001, 1e6), words=st.integers(0, 9)), st.builds(Quiet, pause=st.integers(0, 9))
)
recipes = st.builds(
    stand_in.Recipe,
    weights=st.integers(2, 8),
    activations=st.none() | st.integers(2, 8),
    ratio=st.floats(0, 0.99),
    voice=voices,
    second=st.none() | voices,
    choir=st.lists(voices, max_size=3).map(tuple),
    layer_bits=st.dictionaries(st.text(max_size=8), st.integers(2, 8), max_size=3),
    keep_float=st.lists(st.text(max_size=8), max_size=3).map(tuple),
)


@given(recipes)
def test_settings_survive_yaml(recipe):
    assert build(stand_in.Recipe, from_yaml(to_yaml(describe(recipe)))) == recipe


def test_what_is_left_out_keeps_its_default():
    assert build(stand_in.Recipe, {}) == stand_in.Recipe()
    built = build(stand_in.Recipe, {"weights": 4, "voice": {"volume": 2.0}})
    assert built.weights == 4
    assert built.voice == Loud(volume=2.0, words=5), "the default's own settings stand where nothing is said"


def test_a_method_is_chosen_by_name():
    assert build(stand_in.Recipe, {"voice": "quiet"}).voice == Quiet()
    assert build(stand_in.Recipe, {"voice": {"name": "quiet", "pause": 4}}).voice == Quiet(pause=4)
    assert build(stand_in.Recipe, {"second": "loud"}).second == Loud()
    assert build(stand_in.Recipe, {"choir": ["loud", {"name": "quiet", "pause": 2}]}).choir == (Loud(), Quiet(pause=2))


@pytest.mark.parametrize(
    ("values", "needles"),
    [
        ({"wieghts": 4}, ["'wieghts'", "did you mean 'weights'"]),
        ({"voice": "lowd"}, ["'lowd'", "did you mean 'loud'"]),
        ({"voice": {"name": "loud", "volum": 1}}, ["'voice.volum'", "did you mean 'volume'"]),
        ({"voice": "other"}, ["'other'", "loud, quiet"]),  # a method of the family, but not of this kind
        ({"second": {"pause": 1}}, ["'second'", "name"]),
        ({"weights": 9}, ["weights = 9", "less than or equal to 8"]),
        ({"weights": 1}, ["weights = 1", "greater than or equal to 2"]),
        ({"weights": "four"}, ["weights = 'four'", "integer"]),
        ({"weights": 4.5}, ["weights = 4.5", "integer"]),
        ({"ratio": 1.0}, ["ratio = 1.0", "less than 1"]),
        ({"ratio": -0.1}, ["ratio = -0.1", "greater than or equal to 0"]),
        ({"ratio": math.nan}, ["ratio = nan"]),
        ({"voice": {"volume": -1.0}}, ["volume must be positive, got -1.0"]),
        ({"voice": 3}, ["voice = 3"]),
        ({"layer_bits": {"conv1": "many"}}, ["layer_bits.conv1 = 'many'"]),
    ],
)
def test_bad_settings_are_refused_by_name_with_a_remedy(values, needles):
    with pytest.raises(Refusal) as caught:
        build(stand_in.Recipe, values)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.remedy
    for needle in needles:
        assert needle in text


def test_overrides_are_typed_as_yaml_types_them():
    assert overrides(
        ["weights=4", "ratio=0.3", "activations=null", "voice.name=loud", "voice.volume=2.5", "keep_float=[a, b]"]
    ) == {
        "weights": 4,
        "ratio": 0.3,
        "activations": None,
        "voice": {"name": "loud", "volume": 2.5},
        "keep_float": ["a", "b"],
    }
    assert overrides(['layer_bits."layer1.0.conv1"=8']) == {"layer_bits": {"layer1.0.conv1": 8}}


@pytest.mark.parametrize("bad", ["weights", "=4", "a..b=1", "weights=[4", ".a=1"])
def test_broken_overrides_are_refused(bad):
    with pytest.raises(Refusal, match="--set"):
        overrides([bad])


def test_merging_keeps_settings_of_one_method_and_drops_those_of_another():
    base = {"weights": 8, "voice": {"name": "loud", "volume": 2.0}}
    assert merge(base, {"voice": {"words": 1}})["voice"] == {"name": "loud", "volume": 2.0, "words": 1}
    assert merge(base, {"voice": {"name": "quiet"}})["voice"] == {"name": "quiet"}
    assert merge({"voice": "loud"}, {"voice": {"volume": 3.0}})["voice"] == {"name": "loud", "volume": 3.0}
    assert base["voice"] == {"name": "loud", "volume": 2.0}, "the base is left alone"


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("weights: 4\nweights: 5\n", "stands twice"),
        ("voice: {name: loud, name: quiet}", "stands twice"),
        ("weights: [4", "line"),
        ("- 1\n- 2\n", "mapping"),
        ("4: 5\n", "mapping"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_yaml_is_safe_and_strict(text, needle):
    with pytest.raises(Refusal, match=needle):
        from_yaml(text)


def test_help_follows_from_the_class():
    cards = {setting.name: setting for setting in settings_of(stand_in.Recipe)}
    assert cards["weights"].help == "Bits of weights."
    assert cards["voice"].choices == ("loud", "quiet")
    assert cards["second"].choices == ("loud", "quiet")
    assert cards["layer_bits"].default == {}
    assert cards["voice"].default == {"name": "loud", "volume": 1.0, "words": 5}

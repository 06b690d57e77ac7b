"""The named data sets: their place on the Hub, labels and languages, and which count as unseen.

A data set is made of units: massive's are locales, tsm's languages, universal-ner's treebanks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["sequence", "token"]

_INTENTS = """
    datetime_query iot_hue_lightchange transport_ticket takeaway_query qa_stock general_greet
    recommendation_events music_dislikeness iot_wemo_off cooking_recipe qa_currency
    transport_traffic general_quirky weather_query audio_volume_up email_addcontact
    takeaway_order email_querycontact iot_hue_lightup recommendation_locations play_audiobook
    lists_createoradd news_query alarm_query iot_wemo_on general_joke qa_definition social_query
    music_settings audio_volume_other calendar_remove iot_hue_lightdim calendar_query
    email_sendemail iot_cleaning audio_volume_down play_radio cooking_query datetime_convert
    qa_maths iot_hue_lightoff iot_hue_lighton transport_query music_likeness email_query
    play_music audio_volume_mute social_post alarm_set qa_factoid calendar_set play_game
    alarm_remove lists_remove transport_taxi recommendation_movies iot_coffee music_query
    play_podcasts lists_query
""".split()

_SAMPLE_INTENTS = """
    alarm_set calendar_query calendar_remove calendar_set cooking_recipe datetime_query email_query
    email_sendemail general_quirky lists_query news_query play_music play_podcasts play_radio
    qa_definition qa_factoid recommendation_events social_post transport_query weather_query
""".split()

_LOCALES = """
    af-ZA am-ET ar-SA az-AZ bn-BD ca-ES cy-GB da-DK de-DE el-GR en-US es-ES fa-IR fi-FI fr-FR he-IL
    hi-IN hu-HU hy-AM id-ID is-IS it-IT ja-JP jv-ID ka-GE km-KH kn-IN ko-KR lv-LV ml-IN mn-MN ms-MY
    my-MM nb-NO nl-NL pl-PL pt-PT ro-RO ru-RU sl-SL sq-AL sv-SE sw-KE ta-IN te-IN th-TH tl-PH tr-TR
    ur-PK vi-VN zh-CN zh-TW
""".split()


@dataclass(frozen=True)
class Unit:
    """A part of a data set in one language.

    Attributes:
        name: Its name in the data set (`de-DE`, `german`, `de_pud`).
        code: ISO 639 code of its language; several units may have the same.
        trains: Whether it has training data.
    """

    name: str
    code: str
    trains: bool = True


@dataclass(frozen=True)
class NamedData:
    """A data set that is known by name.

    Attributes:
        hub_id, hub_revision: The data set on the Hub; empty for the embedded sample.
        hub_selector: The argument of `load_dataset` that selects a unit.
        text_column, label_column: Its columns, on the Hub and in files.
        labels: All its labels, by id.
        unseen: The units that count as unseen by default.
        lists_note: Where the lists of seen and unseen units come from.
        hub_note: A warning about the copy on the Hub.
        outside: Tags in its files that are not among its labels, and are read as O.
    """

    name: str
    task: Task
    hub_id: str
    hub_revision: str | None
    hub_selector: Literal["name", "data_dir"]
    text_column: str
    label_column: str
    labels: tuple[str, ...]
    units: tuple[Unit, ...]
    unseen: tuple[str, ...]
    lists_note: str
    hub_note: str = ""
    outside: tuple[str, ...] = ()

    @property
    def seen(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in self.units if unit.name not in self.unseen)


_OWN_CHOICE = (
    "this project's own choice (the paper does not give its lists); --seen-languages and "
    "--unseen-languages change it"
)

MASSIVE = NamedData(
    name="massive",
    task="sequence",
    hub_id="AmazonScience/massive",
    hub_revision="refs/convert/parquet",
    hub_selector="data_dir",
    text_column="utt",
    label_column="intent",
    labels=tuple(_INTENTS),
    units=tuple(Unit(locale, locale[:2]) for locale in _LOCALES),
    unseen=tuple("az-AZ da-DK fi-FI he-IL jv-ID kn-IN nl-NL pt-PT sq-AL sw-KE th-TH ur-PK".split()),
    lists_note=_OWN_CHOICE,
)

TSM = NamedData(
    name="tsm",
    task="sequence",
    hub_id="cardiffnlp/tweet_sentiment_multilingual",
    hub_revision="refs/convert/parquet",
    hub_selector="data_dir",
    text_column="text",
    label_column="label",
    labels=("negative", "neutral", "positive"),
    units=(
        Unit("arabic", "ar"),
        Unit("english", "en"),
        Unit("french", "fr"),
        Unit("german", "de"),
        Unit("hindi", "hi"),
        Unit("italian", "it"),
        Unit("portuguese", "pt"),
        Unit("spanish", "es"),
    ),
    unseen=("hindi", "portuguese"),
    lists_note=_OWN_CHOICE,
)

UNIVERSAL_NER = NamedData(
    name="universal-ner",
    task="token",
    hub_id="BramVanroy/universal_ner",
    hub_revision=None,
    hub_selector="name",
    text_column="tokens",
    label_column="ner_tags",
    labels=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
    units=tuple(
        Unit(
            name,
            name.split("_")[0],
            trains=not name.startswith(("ceb_", "tl_")) and "_pud" not in name,
        )
        for name in """
            ceb_gja da_ddt de_pud en_ewt en_pud hr_set pt_bosque pt_pud ru_pud sk_snk sr_set sv_pud
            sv_talbanken tl_trg tl_ugnayan zh_gsd zh_gsdsimp zh_pud
        """.split()
    ),
    unseen=("ceb_gja", "de_pud", "ru_pud", "tl_trg", "tl_ugnayan"),
    lists_note="the languages without training data are unseen",
    hub_note=(
        "this copy of universal-ner on the Hub is not the authors' own and has not been verified; "
        "read the released .iob2 files with --data-dir to be sure"
    ),
    outside=("B-OTH", "I-OTH", "B-O", "I-O"),
)

SAMPLE = NamedData(
    name="sample",
    task="sequence",
    hub_id="",
    hub_revision=None,
    hub_selector="data_dir",
    text_column="utt",
    label_column="intent",
    labels=tuple(_SAMPLE_INTENTS),
    units=tuple(
        Unit(locale, locale[:2], trains=locale in ("de-DE", "en-US", "es-ES", "ru-RU"))
        for locale in "de-DE en-US es-ES ru-RU nl-NL pt-PT sv-SE".split()
    ),
    unseen=("nl-NL", "pt-PT", "sv-SE"),
    lists_note="the sample has four languages for training and three unseen ones",
)

NAMED = {data.name: data for data in (MASSIVE, TSM, UNIVERSAL_NER, SAMPLE)}

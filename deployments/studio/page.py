"""The studio's HTML pages."""

from __future__ import annotations

from deployments.studio.folder import MOST_UPLOAD_BYTES
from deployments.studio.form_request import MOST_SECONDS, MOST_VARIATIONS
from musicgen_core.escaping import html_page
from musicgen_core.generation.player import player_texts
from musicgen_core.language import say
from musicgen_core.music_theory import key_names

PACKAGE = "deployments.studio"


def studio_page() -> str:
    return html_page(
        PACKAGE,
        "page.html.j2",
        texts=_texts(),
        player=player_texts(),
        keys=key_names(),
        most_seconds=MOST_SECONDS,
        most_variations=MOST_VARIATIONS,
        most_upload_bytes=MOST_UPLOAD_BYTES,
    )


def login_page(is_wrong: bool) -> str:
    return html_page(PACKAGE, "login.html.j2", is_wrong=is_wrong)


def _texts() -> dict[str, str]:
    """Return the texts that the scripts fill in, whose values they put in place of `{name}`."""
    return {
        "ready": say("{model} on {device}", model="{model}", device="{device}"),
        "unreachable": say("The studio doesn't answer. It may have been stopped"),
        "next": say("next"),
        "before": say("{number} before it", number="{number}"),
        "making": say("{done} of {total} s", done="{done}", total="{total}"),
        "finishing": say("writing the files"),
        "failed": say("failed: {reason}", reason="{reason}"),
        "cancelled": say("cancelled"),
        "no_prompt": say("(no prompt)"),
        "base": say("base model"),
        "seed": say("seed {seed}", seed="{seed}"),
        "seconds": say("{seconds} s", seconds="{seconds}"),
        "continued": say("a continuation"),
        "loss": say("validation loss {loss}", loss="{loss}"),
        "spectrogram": say("Spectrogram of {name}", name="{name}"),
        "continues": say("Continues {name} from {seconds} s", name="{name}", seconds="{seconds}"),
        "strength": say("Strength of {name}", name="{name}"),
        "flow_started": say("The run has started"),
        "carried": say("Also used: {values}", values="{values}"),
        "too_large": say("what was sent has more than {most} MiB", most=MOST_UPLOAD_BYTES >> 20),
        "uploading": say("sending the recording"),
    }

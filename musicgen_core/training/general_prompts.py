"""General prompts, from which the base model generates clips for prior preservation."""

from __future__ import annotations

from musicgen_core.config import TrainSettings
from musicgen_core.generation.prompts import read_prompts

GENERAL_PROMPTS = (
    "calm solo piano, slow and melancholic",
    "upbeat electronic dance music with a strong bass, 128 bpm",
    "heavy metal with fast drums and a guitar solo",
    "relaxed lo-fi hip hop beat with a mellow electric piano",
    "orchestral film score, epic and dramatic",
    "acoustic folk song with fingerpicked guitar",
    "funky disco groove with slap bass and brass",
    "dark ambient drone, slow and mysterious",
    "smooth jazz trio with double bass and brushed drums",
    "reggae with off-beat guitar and a deep bass line",
    "driving techno with a pounding kick drum, 135 bpm",
    "romantic string quartet, tender and slow",
    "80s synthpop with bright synthesizers and drum machine",
    "country song with banjo and steel guitar, cheerful",
    "bossa nova with nylon guitar and soft percussion",
    "chiptune melody of a retro video game, fast",
    "slow blues with electric guitar and organ",
    "drum and bass with a rolling break beat, 174 bpm",
    "Celtic music with fiddle, flute and bodhran, lively",
    "soul ballad with warm electric piano and strings",
    "punk rock with distorted guitars, fast and energetic",
    "meditation music with soft pads and bells",
    "Latin salsa with piano, congas and trumpets",
    "trap beat with heavy 808 bass and hi-hats, 140 bpm",
    "baroque harpsichord with violins, lively",
    "indie rock with jangly guitars, nostalgic",
    "deep house with warm chords and a steady beat, 122 bpm",
    "church organ, solemn and slow",
    "big band swing with saxophones and trombones, joyful",
    "flamenco guitar with hand claps, passionate",
    "trance with arpeggiated synthesizers, uplifting, 138 bpm",
    "lullaby on a music box, gentle and slow",
    "hard rock with a catchy guitar riff and powerful drums",
    "Indian sitar and tabla, hypnotic",
    "downtempo trip hop with a dusty beat, moody",
    "marching band with brass and snare drums",
    "new age harp with flowing synthesizer pads",
    "rhythm and blues with smooth bass and finger snaps",
    "cinematic tension with low strings and ticking percussion",
    "ukulele and whistling, happy and carefree",
    "dubstep with a wobbling bass, aggressive, 140 bpm",
    "waltz for accordion and violin in 3/4",
    "gospel with piano, organ and hand claps, uplifting",
    "afrobeat with horns, guitar and polyrhythmic drums",
    "minimal piano and strings, contemplative",
    "surf rock with reverberating guitar, fast",
    "synthwave with pulsing bass and retro drums, 100 bpm",
    "tango with bandoneon and piano, dramatic",
    "drum solo on an acoustic kit, energetic",
    "soft rock ballad with acoustic guitar, emotional",
    "Japanese koto and shakuhachi flute, peaceful",
    "ska with bouncy guitar and a horn section, cheerful",
    "industrial music with distorted synthesizers, cold and mechanical",
    "woodwind quintet, playful and light",
    "hip hop with jazzy samples and a boom bap beat, 90 bpm",
    "Caribbean steel drums, sunny and relaxed",
    "psychedelic rock with swirling organ, dreamy",
    "solo cello, dark and expressive",
    "Christmas music with sleigh bells and choir, festive",
    "garage rock with raw guitars and simple drums",
    "ambient guitar with long echoes, spacious and calm",
    "bluegrass with banjo, mandolin and fiddle, fast",
    "electro funk with vocoder and synthesizer bass, 110 bpm",
    "symphonic adagio with full orchestra, sad and beautiful",
)


def general_prompts(settings: TrainSettings) -> list[str]:
    """Return the prompts for prior preservation: those of the file `prior_prompts`, or else the built-in ones.

    Raises:
        ConfigError: the file is missing, holds no prompts, or has invalid lines.
    """
    if settings.prior_prompts is None:
        return list(GENERAL_PROMPTS)
    return [prompt.prompt for prompt in read_prompts(settings.prior_prompts)]

"""Procedural music, used to train the model `demo` and to fine-tune it in the demo.

`compose` returns a clip: notes, a caption, and the parameters that both were made from. `SoundBank.render` turns
clips into audio. Everything is a function of a seed.

    instruments    one note of each instrument and pitch, as audio
    score          notes on a grid of beats: chords, bass, melody, drums
    styles         arrangement of each style
    captions       a description of a clip in varied words
    composing      seed → clip
    rendering      clips → audio, in batches, on a CPU or a GPU
"""

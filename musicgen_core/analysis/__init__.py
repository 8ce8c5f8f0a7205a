"""Music measured from its audio alone: tempo, metre, key, slides, style, and distances between sounds.

Nothing here knows how the audio was made, nor of any model. All functions take batches, 32 kHz mono, [B, samples], on
any device.

    spectra       log-mel spectrogram, onset strength, spectral centroid
    rhythm        tempo, metre
    harmony       notes and their pitch classes, key, slides
    classifier    a linear classifier of clips, of their style, of whether there are drums
    distances     SI-SDR between two signals, Fréchet distance between two sets of clips
"""

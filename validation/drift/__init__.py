"""Where along layers and steps a candidate departs from the truth, and whether by more than rounding explains.

    replay   the truth and its legal replays, as op sets
    teacher  at each site call of the truth's own trajectory: who is further from the truth?
    band     the free-running candidate's distance to the truth, ranked among those of the replays
    cache    the band on disk
    measure  the whole measurement over some prompts
    verdicts the verdicts on the measurement, held to a tier

A model takes part as a `validation.samples.model.Sampler`. Nothing here knows a model.
"""

from hypothesis import settings

settings.register_profile("loaded", deadline=None)  # a busy machine is no failure
settings.load_profile("loaded")

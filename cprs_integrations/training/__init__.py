"""Training of the small critic; needs the extra "torch"."""

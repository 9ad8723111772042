"""Training of lkm-calc models; installed as ``lkm_train``."""

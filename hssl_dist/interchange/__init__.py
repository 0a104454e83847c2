"""Models in the formats of other tools: nnU-Net's checkpoint and plans, a MONAI bundle, plain weights.

    portable.py       the U-Net of a model, without what only pretraining used, and an account of that
    preparation.py    how an image becomes what the network reads, as far as anything says so
    verification.py   the exported network, built by the other tool, against ours
    plain.py          safetensors and a JSON card
    nnunet.py         nnU-Net's checkpoint and dataset.json; nnunet_plans.py its plans
    monai_bundle.py   a MONAI bundle; bundle_normalisation.py is the script that travels in it

Each format is a function that writes it into a folder and one that builds what was written and compares.
"""

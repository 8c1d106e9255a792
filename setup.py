"""Packaging of helios_jax: the JAX/Flax implementation of Helios (arXiv 2603.04379)."""

from setuptools import find_packages, setup

MEDIA = ["av>=16", "pillow>=10"]
TEXT = ["tokenizers>=0.20", "ftfy>=6.1"]
TRAIN = [
    "array_record>=0.8",
    "grain>=0.2.10",
    "importlib_resources>=6",
    "ml_collections>=1.0",
    "optax>=0.2.5",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.9",
]

setup(
    name="helios_jax",
    version="0.1.0",
    description="Helios, a 14-billion-parameter real-time long-video model, in JAX and Flax",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["helios_jax*", "pallas_kernels*", "experiments*", "data*"]),
    install_requires=[
        "jax>=0.11.2,<0.13",
        "flax>=0.12.10,<0.13",
        "orbax-checkpoint>=0.11,<1.0",
        "absl-py>=2.1",
        "chex>=0.1.90",
        "flatbuffers>=24",
        "huggingface_hub>=0.30",
        "jaxtyping>=0.3",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "safetensors>=0.5",
        "tqdm>=4.66",
        *MEDIA,
        *TEXT,
    ],
    extras_require={
        "gpu": ["jax[cuda13]>=0.11.2,<0.13"],
        "train": TRAIN,
        "beam": ["apache-beam>=2.60"],
        "dev": [
            *TRAIN,
            "beartype>=0.20",
            "jupytext>=1.16",
            "psutil>=5.9",
            "pyrefly>=0.40",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
        ],
    },
    entry_points={
        "console_scripts": [
            "helios-sample=helios_jax.sample:run",
            "helios-convert=helios_jax.convert:run",
            "helios-prepare=helios_jax.prepare:run",
            "helios-train=helios_jax.train:run",
        ]
    },
)

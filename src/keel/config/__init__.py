"""Every option of every command: typed configs that refuse impossible values and name the remedy. No torch here.

A config comes from defaults, then `--config FILE.yaml`, then flags; a run folder keeps the result as `config.yaml`.
Fields are in the order of `--help`: input and output first, then the method's own options, then the rest.
"""

from keel.config.base import Config
from keel.config.collecting import AnnotateConfig, CollectConfig, RatersAddConfig, RatersListConfig, RatersRevokeConfig
from keel.config.data import (
    DataAgreementConfig,
    DataBackupConfig,
    DataCheckConfig,
    DataConfig,
    DataConvertConfig,
    DataForgetConfig,
    DataMergeConfig,
    DataSplitConfig,
    DataStatsConfig,
)
from keel.config.demo import DemoConfig
from keel.config.parts import Adapting, Loading, Machine, Reading, Spelling, StoreConfig
from keel.config.sampling import BestOfNConfig, GenerateConfig, Sampling
from keel.config.training import DPOConfig, MergeConfig, PPOConfig, RewardConfig, SFTConfig, Training

__all__ = [
    "Adapting",
    "AnnotateConfig",
    "BestOfNConfig",
    "CollectConfig",
    "Config",
    "DPOConfig",
    "DataAgreementConfig",
    "DataBackupConfig",
    "DataCheckConfig",
    "DataConfig",
    "DataConvertConfig",
    "DataForgetConfig",
    "DataMergeConfig",
    "DataSplitConfig",
    "DataStatsConfig",
    "DemoConfig",
    "GenerateConfig",
    "Loading",
    "Machine",
    "MergeConfig",
    "PPOConfig",
    "RatersAddConfig",
    "RatersListConfig",
    "RatersRevokeConfig",
    "Reading",
    "RewardConfig",
    "SFTConfig",
    "Sampling",
    "Spelling",
    "StoreConfig",
    "Training",
]

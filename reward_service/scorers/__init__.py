"""The scorers that ship with the project, one file each.

docs/scorers.md has their numbers, options, weights, preparation of images and prompts, and sources; the
classes say where they deviate and why. Those of models read their weights at first use, in float32, on the
GPU where there is one.
"""

SHIPPED: dict[str, str] = {
    "aesthetic": "reward_service.scorers.aesthetic:AestheticScorer",
    "clip": "reward_service.scorers.clip:ClipScorer",
    "clipscore": "reward_service.scorers.clipscore:ClipScore",
    "hpsv2": "reward_service.scorers.hpsv2:HpsV2",
    "imagereward": "reward_service.scorers.imagereward:ImageReward",
    "jpeg_compressibility": "reward_service.scorers.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "reward_service.scorers.jpeg:JpegIncompressibility",
    "mix": "reward_service.scorers.mix:Mix",
    "mix_pairwise": "reward_service.scorers.mix:MixPairwise",
    "ocr": "reward_service.scorers.ocr:OcrAccuracy",
    "vlm_pairs": "reward_service.scorers.vlm:VlmPairs",
    "vlm_rubric": "reward_service.scorers.vlm:VlmRubric",
    "pickscore": "reward_service.scorers.pickscore:PickScore",
    "remote": "reward_service.scorers.remote:RemoteReward",
    "remote_score": "reward_service.scorers.remote:RemoteScore",
}
"""Short name in the configuration -> module:class."""

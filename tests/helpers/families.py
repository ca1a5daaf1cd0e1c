"""Families of timm's models, one small model of each: for tests/test_model_families.py and docs/models.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A model that is tried, and at how many pixels."""

    name: str
    model: str
    size: int = 64
    maps: bool = True  # whether Grad-CAM finds a stage to look at


FAMILIES = {
    family.name: family
    for family in (
        Family("ResNet", "resnet10t", 32),
        Family("ResNeXt", "resnext26ts"),
        Family("SE-ResNet", "seresnet18", 32),
        Family("ResNetV2", "resnetv2_18d", 32),
        Family("Res2Net", "res2net50_26w_4s"),
        Family("RegNet", "regnety_002"),
        Family("ConvNeXt", "convnext_atto"),
        Family("ConvNeXt V2", "convnextv2_atto"),
        Family("EfficientNet", "efficientnet_b0"),
        Family("MobileNetV3", "mobilenetv3_small_050"),
        Family("MobileNetV4", "mobilenetv4_conv_small_035"),
        Family("GhostNet", "ghostnet_050"),
        Family("DenseNet", "densenet121", 32),
        Family("VGG", "vgg11", 32),
        Family("Inception v3", "inception_v3", 96),
        Family("InceptionNeXt", "inception_next_atto"),
        Family("NFNet", "test_nfnet"),
        Family("HRNet", "hrnet_w18_small"),
        Family("MViT v2", "mvitv2_tiny", 128),
        Family("Twins", "twins_svt_small", 128),
        Family("DLA", "dla34"),
        Family("CSPNet", "cspresnet50"),
        Family("RepVGG", "repvgg_a0"),
        Family("MobileOne", "mobileone_s0"),
        Family("ViT", "vit_tiny_patch16_224"),
        Family("ViT, relative positions", "vit_relpos_small_patch16_224"),
        Family("DeiT", "deit_tiny_patch16_224"),
        Family("DeiT, distilled", "deit_tiny_distilled_patch16_224"),
        Family("BEiT", "beit_base_patch16_224"),
        Family("EVA", "eva02_tiny_patch14_224", 56),
        Family("CaiT", "cait_xxs24_224"),
        Family("XCiT", "xcit_nano_12_p16_224"),
        Family("Swin", "swin_tiny_patch4_window7_224"),
        Family("Swin V2", "swinv2_tiny_window8_256"),
        Family("MLP-Mixer", "mixer_s32_224", 128),
        Family("CoAtNet", "test_coatnet"),
        Family("MaxViT", "test_maxvit"),
        Family("LeViT", "levit_128s"),
        Family("EfficientViT (MIT)", "efficientvit_b0"),
        Family("EfficientViT (MSRA)", "efficientvit_m0"),
        Family("PoolFormer", "poolformer_s12"),
        Family("CAFormer", "caformer_s18"),
        Family("PVT v2", "pvt_v2_b0"),
        Family("EdgeNeXt", "edgenext_xx_small"),
        Family("FastViT", "fastvit_t8"),
        Family("MobileViT", "mobilevit_xxs"),
        Family("CrossViT", "crossvit_tiny_240", maps=False),
        Family("GC ViT", "gcvit_xxtiny"),
        Family("DaViT", "davit_tiny"),
        Family("Hiera", "hiera_tiny_224", maps=False),
        Family("TinyViT", "tiny_vit_5m_224"),
        Family("MambaOut", "mambaout_femto"),
    )
}

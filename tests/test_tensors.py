from __future__ import annotations

import pytest
import torch

from nemo_merge.tensors import Depth, Role, depths_of, groups_of, role_of

CASES = [
    ("encoder.layers.0.conv.batch_norm.num_batches_tracked", (), torch.int64, Role.BUFFER),
    ("encoder.layers.0.conv.batch_norm.running_mean", (8,), torch.float32, Role.BATCH_NORM_MEAN),
    ("encoder.layers.0.conv.batch_norm.running_var", (8,), torch.float32, Role.BATCH_NORM_VARIANCE),
    ("preprocessor.featurizer.fb", (1, 80, 257), torch.float32, Role.PREPROCESSOR),
    ("preprocessor.featurizer.window", (400,), torch.float32, Role.PREPROCESSOR),
    ("encoder.layers.0.self_attn.pos_bias_u", (4, 24), torch.float32, Role.VECTOR),
    ("encoder.layers.0.self_attn.linear_q.weight", (96, 96), torch.float32, Role.MATRIX),
    ("encoder.layers.0.conv.pointwise_conv1.weight", (192, 96, 1), torch.float32, Role.POINTWISE_CONV),
    ("encoder.pre_encode.conv.3.weight", (32, 32, 1, 1), torch.float32, Role.POINTWISE_CONV),
    ("encoder.layers.0.conv.depthwise_conv.weight", (96, 1, 9), torch.float32, Role.DEPTHWISE_CONV),
    ("model.encoder.conv1.weight", (768, 80, 3), torch.float32, Role.CONV),
    ("model.decoder.embed_tokens.weight", (51865, 768), torch.float32, Role.EMBEDDING),
    ("model.encoder.embed_positions.weight", (1500, 768), torch.float32, Role.EMBEDDING),
    ("transf_decoder._embedding.token_embedding.weight", (64, 96), torch.float32, Role.EMBEDDING),
    ("decoder.prediction.embed.weight", (65, 96), torch.float32, Role.EMBEDDING),
    ("decoder.prediction.dec_rnn.lstm.weight_ih_l0", (384, 96), torch.float32, Role.MATRIX),
    ("decoder.prediction.dec_rnn.lstm.bias_ih_l0", (384,), torch.float32, Role.VECTOR),
    ("decoder.decoder_layers.0.weight", (29, 96, 1), torch.float32, Role.HEAD),
    ("joint.joint_net.2.weight", (65, 96), torch.float32, Role.HEAD),
    ("joint.enc.weight", (96, 96), torch.float32, Role.MATRIX),
    ("proj_out.weight", (51865, 768), torch.float32, Role.HEAD),
    ("encoder.layers.0.norm_out.weight", (96,), torch.float16, Role.VECTOR),
    ("some.scalar", (), torch.float32, Role.VECTOR),
    ("one_row.weight", (1, 96), torch.float32, Role.VECTOR),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "role"), CASES, ids=[case[0] for case in CASES])
def test_role(name, shape, dtype, role):
    assert role_of(name, shape, dtype) is role


GROUPS = [
    ("encoder.layers.3.norm_out.weight", (8,), {"encoder"}),
    ("encoder.pre_encode.conv.0.weight", (8, 1, 3, 3), {"encoder"}),
    ("decoder.decoder_layers.0.weight", (29, 8, 1), {"head"}),
    ("decoder.decoder_layers.0.bias", (29,), {"head"}),
    ("ctc_decoder.decoder_layers.0.bias", (29,), {"head"}),
    ("decoder.prediction.dec_rnn.lstm.weight_ih_l0", (32, 8), {"predictor"}),
    ("joint.enc.weight", (8, 8), {"joint"}),
    ("joint.joint_net.2.weight", (29, 8), {"joint", "head"}),
    ("transf_decoder._decoder.layers.0.first_sub_layer.key_net.weight", (8, 8), {"decoder"}),
    ("transf_decoder._embedding.token_embedding.weight", (29, 8), {"decoder"}),
    ("log_softmax.mlp.layer0.weight", (29, 8), {"head"}),
    ("model.encoder.layers.0.self_attn.k_proj.weight", (8, 8), {"encoder"}),
    ("model.decoder.layers.0.encoder_attn.k_proj.weight", (8, 8), {"decoder"}),
    ("proj_out.weight", (29, 8), {"head"}),
    ("wav2vec2.feature_extractor.conv_layers.0.conv.weight", (8, 1, 10), {"encoder"}),
    ("lm_head.bias", (29,), {"head"}),
    ("preprocessor.featurizer.fb", (1, 8, 9), {"preprocessor"}),
    ("something.else.weight", (8, 8), {"other"}),
]


@pytest.mark.parametrize(("name", "shape", "groups"), GROUPS, ids=[case[0] for case in GROUPS])
def test_groups(name, shape, groups):
    assert groups_of(name, role_of(name, shape, torch.float32)) == groups


def test_depth_is_that_of_the_outermost_numbered_block_in_its_stack():
    names = [
        "encoder.pre_encode.conv.0.weight",
        "encoder.layers.0.conv.weight",
        "encoder.layers.11.feed_forward1.layers.2.weight",
        "model.decoder.layers.5.fc1.weight",
        "transformer.h.0.mlp.weight",
    ]
    depths = depths_of(names)
    assert depths[names[1]] == Depth("encoder", 0, 12)
    assert depths[names[2]] == Depth("encoder", 11, 12)
    assert depths[names[2]].position == 1.0
    assert depths[names[3]] == Depth("model.decoder", 5, 6)
    assert depths[names[4]].position == 0.0
    assert names[0] not in depths

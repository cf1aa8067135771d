from __future__ import annotations

import pytest
import torch

from nemo_merge.tensors import Role, role_of

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

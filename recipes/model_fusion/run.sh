#!/usr/bin/env bash
# Several encoders behind one interface: single ones, all pairs, all together; recognition and classification.
#   ./run.sh                                  all stages; what is done already is skipped
#   ./run.sh --stage 4 fuse.pairs='[hconv]'   other interfaces
#   ./run.sh --config conf/pretrained.yaml    with encoders of the Hugging Face hub
#   ./run.sh --help                           stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../stages.sh" "$@"

exec "$python" -m nemo_merge.stages --config "$here/conf/model_fusion.yaml" "$@"

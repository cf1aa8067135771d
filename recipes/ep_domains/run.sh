#!/usr/bin/env bash
# Ten domains of European Portuguese: a base, ten experts, joint fine-tuning, every merging method with a search.
#   ./run.sh                                  all stages; what is done already is skipped
#   ./run.sh --stage 4 --stop_stage 8         from merging on
#   ./run.sh --config conf/own_corpora.yaml   on corpora of your own
#   ./run.sh --help                           stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../stages.sh" "$@"

exec "$python" -m nemo_merge.stages --config "$here/conf/ep_domains.yaml" "$@"

#!/usr/bin/env bash
# EP-mini: train a bilingual base, adapt it to switched speech by every method, measure what is learnt and what is lost.
#   ./run.sh                          all stages; what is done already is skipped
#   ./run.sh --stage 3 --stop_stage 8 from training on
#   ./run.sh --help                   stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../stages.sh" "$@"

exec "$python" -m nemo_merge.stages --config "$here/conf/code_switching.yaml" "$@"

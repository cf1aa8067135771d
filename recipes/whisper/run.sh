#!/usr/bin/env bash
# Whisper: fine-tune an expert per domain and all domains jointly, merge by every method, decode, score, report.
#   ./run.sh                                       all stages on a tiny Whisper, which recognises nothing
#   ./run.sh --config conf/whisper_large_v3.yaml   whisper-large-v3 and corpora of your own
#   ./run.sh --help                                stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../stages.sh" "$@"

exec "$python" -m nemo_merge.stages --config "$here/conf/whisper.yaml" "$@"

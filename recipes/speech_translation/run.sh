#!/usr/bin/env bash
# Speech translation: an attention model, experts for transcription and translation, merged across languages and tasks.
#   ./run.sh                          all stages; what is done already is skipped
#   ./run.sh --stage 4 --stop_stage 8 from merging on
#   ./run.sh --help                   stages and options
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../stages.sh" "$@"

exec "$python" -m nemo_merge.stages --config "$here/conf/speech_translation.yaml" "$@"

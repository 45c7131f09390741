#!/usr/bin/env bash
# Makes the two example clips with espeak-ng (a speech synthesiser: nobody's voice). Needs: espeak-ng.
set -euo pipefail
cd "$(dirname "$0")"
text="Good morning. The train to the harbour leaves from platform four at half past nine. Please keep your ticket until you arrive."
espeak-ng -v en-us+f3 -s 160 -w woman.wav "$text"
espeak-ng -v en-us+m3 -s 150 -p 30 -w man.wav "$text"

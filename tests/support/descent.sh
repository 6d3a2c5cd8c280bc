#!/bin/sh
# Fits a line through ten points by gradient descent in awk: `descent.sh LR EPOCHS`. No process of Python's.
lr=$1 weight=0
say() { echo "$1" >"$BUDGETTUNE_TRIAL/say"; }

for epoch in $(seq "$2"); do
    say '{"clock": "start"}'
    weight=$(awk -v w="$weight" -v lr="$lr" 'BEGIN {
        for (step = 0; step < 20; step++) {
            slope = 0
            for (i = 1; i <= 10; i++) { x = i / 10; slope += (w * x - 3 * x) * x / 10 }
            w -= lr * slope
        }
        printf "%.9g", w
    }')
    say '{"clock": "stop", "steps": 20, "samples": 200}'
    error=$(awk -v w="$weight" 'BEGIN { printf "%.9g", (w - 3) ^ 2 / 9 }')
    say "{\"report\": {\"squared_error\": $error}}"
    read -r answer <"$BUDGETTUNE_TRIAL/hear"
    case $answer in *'"go_on": false'*) break ;; esac
done

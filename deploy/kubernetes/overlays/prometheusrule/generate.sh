#!/bin/sh
# generate.sh [FILE]: writes the PrometheusRule from deploy/prometheus/rules, to prometheusrule.yaml beside this
# script unless another file is named. kustomize cannot put one file into another; a test holds the result
# equal to the rules.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
rules=$here/../../../prometheus/rules
out=${1:-$here/prometheusrule.yaml}

{
    cat <<'HEAD'
# Made by generate.sh from deploy/prometheus/rules; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: curfewd
  labels:
    app.kubernetes.io/name: curfewd
    app.kubernetes.io/component: daemon
spec:
  groups:
HEAD
    # What follows `groups:`, two columns further in.
    for each in recording alerts; do
        awk 'inside { print ($0 == "" ? "" : "  " $0) } /^groups:/ { inside = 1 }' "$rules/$each.yml"
    done
} >"$out"

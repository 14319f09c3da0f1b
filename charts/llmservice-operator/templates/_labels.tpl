{{/*
  llmservice-operator.metadata            name, namespace, labels and annotations of an object
  llmservice-operator.podMetadata         labels and annotations of the pods of a Deployment
  llmservice-operator.labels              labels of an object
  llmservice-operator.podLabels           labels of the pods of a component
  llmservice-operator.selectorLabels      the part that selects the pods of a component; it can never change
*/}}

{{/*
Arguments: `root`, the chart's context; `name`; `namespace`, by default that of the release, and empty for an object
of the whole cluster; `component`, by default operator; `labels` and `annotations`, by default empty. The chart's own
labels take precedence over these, and both over the common ones.
*/}}
{{- define "llmservice-operator.metadata" -}}
{{- $values := .root.Values -}}
{{- $namespace := hasKey . "namespace" | ternary .namespace (include "llmservice-operator.namespace" .root) -}}
{{- $labels := include "llmservice-operator.labels" . | fromYaml -}}
{{- $annotations := merge (dict) (.annotations | default dict) $values.commonAnnotations -}}
name: {{ .name }}
{{- with $namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- merge $labels (.labels | default dict) $values.commonLabels | toYaml | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The version of the chart replaces the pods when the chart changes and the image does not. */}}
{{- define "llmservice-operator.podMetadata" -}}
{{- $values := .root.Values -}}
{{- $labels := include "llmservice-operator.podLabels" . | fromYaml -}}
{{- $own := dict "kubectl.kubernetes.io/default-container" .component -}}
labels:
  {{- merge $labels (include "llmservice-operator.chartLabel" .root | fromYaml) $values.podLabels $values.commonLabels | toYaml | nindent 2 }}
annotations:
  {{- merge $own $values.podAnnotations $values.commonAnnotations | toYaml | nindent 2 }}
{{- end -}}

{{- define "llmservice-operator.chartLabel" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "llmservice-operator.labels" -}}
{{ include "llmservice-operator.chartLabel" .root }}
{{ include "llmservice-operator.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "llmservice-operator.podLabels" -}}
{{ include "llmservice-operator.selectorLabels" . }}
app.kubernetes.io/component: {{ .component | default "operator" }}
app.kubernetes.io/part-of: llmservice
{{- end -}}

{{/* Each component has another name, so that no selector finds the pods of another component. */}}
{{- define "llmservice-operator.selectorLabels" -}}
{{- $component := .component | default "operator" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}{{ if ne $component "operator" }}-{{ $component }}{{ end }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

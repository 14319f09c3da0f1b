{{/*
  llmservice-operator.labels          labels of every object
  llmservice-operator.podLabels       labels of the operator's pods: without versions, so that a new chart alone restarts nothing
  llmservice-operator.selectorLabels  the part that selects the operator's pods; it can never change
  llmservice-operator.metricsServer…      the same three for the metrics server
  llmservice-operator.monitoringLabels    labels of the objects for a monitoring stack, with those of its selectors
*/}}

{{- define "llmservice-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "llmservice-operator.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "llmservice-operator.podLabels" -}}
{{ include "llmservice-operator.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: llmservice
{{- end -}}

{{- define "llmservice-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "llmservice-operator.metricsServerLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "llmservice-operator.metricsServerPodLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "llmservice-operator.metricsServerPodLabels" -}}
{{ include "llmservice-operator.metricsServerSelectorLabels" . }}
app.kubernetes.io/component: metrics-server
app.kubernetes.io/part-of: llmservice
{{- end -}}

{{/* Another name than the operator's, whose selector must not find these pods. */}}
{{- define "llmservice-operator.metricsServerSelectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-metrics-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "llmservice-operator.monitoringLabels" -}}
{{- $own := include "llmservice-operator.labels" . | fromYaml -}}
{{- merge $own .Values.monitoring.labels | toYaml -}}
{{- end -}}

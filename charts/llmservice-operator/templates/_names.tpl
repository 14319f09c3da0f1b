{{/*
Every object name and image reference of the chart.

  llmservice-operator.fullname            name of the operator's objects
  llmservice-operator.clusterWideName     name of the admission policy
  llmservice-operator.serviceAccountName  account the operator runs as
  llmservice-operator.leaseRoleName       Role for the leader Lease
  llmservice-operator.remoteCodeRoleName  Role that grants trust-remote-code
  llmservice-operator.metricsServerName   name of the metrics server's objects
  llmservice-operator.metricsServerPodsName  Service object with the addresses of the metrics server's pods
  llmservice-operator.image               image reference of the operator
*/}}

{{/* At most 54 characters, so that the longest suffix below still gives a DNS label. */}}
{{- define "llmservice-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 54 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Releases of one name in several namespaces may share a cluster. A namespace has no dot. */}}
{{- define "llmservice-operator.clusterWideName" -}}
{{- include "llmservice-operator.fullname" . }}.{{ .Release.Namespace }}
{{- end -}}

{{- define "llmservice-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "llmservice-operator.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name must be set when serviceAccount.create is false: name the account that the operator shall run as" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "llmservice-operator.leaseRoleName" -}}
{{- include "llmservice-operator.fullname" . }}-lease
{{- end -}}

{{- define "llmservice-operator.remoteCodeRoleName" -}}
{{- include "llmservice-operator.fullname" . }}-trust-remote-code
{{- end -}}

{{/* Shortened once more, so that with its suffix it is still a DNS label. */}}
{{- define "llmservice-operator.metricsServerName" -}}
{{- include "llmservice-operator.fullname" . | trunc 48 | trimSuffix "-" }}-metrics-server
{{- end -}}

{{- define "llmservice-operator.metricsServerPodsName" -}}
{{- include "llmservice-operator.fullname" . | trunc 43 | trimSuffix "-" }}-metrics-server-pods
{{- end -}}

{{/* A digest names the exact bytes, so it wins over the tag. */}}
{{- define "llmservice-operator.image" -}}
{{- $repository := printf "%s/%s" .Values.image.registry .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

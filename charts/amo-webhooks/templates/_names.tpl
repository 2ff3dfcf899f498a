{{/* Names, labels and images. */}}

{{- define "amo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* Labels by which pods are selected; takes (list root component). */}}
{{- define "amo.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object; takes (list root component). */}}
{{- define "amo.labels" -}}
{{- $root := index . 0 -}}
{{ include "amo.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* An image by digest, else by tag; takes (list image appVersion). */}}
{{- define "amo.image" -}}
{{- $image := index . 0 -}}
{{- $tag := $image.tag | default (ternary "" (index . 1) (not (empty $image.digest))) -}}
{{ $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "amo.serviceImage" -}}
{{ include "amo.image" (list .Values.image .Chart.AppVersion) }}
{{- end -}}

{{- define "amo.databaseSecret" -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "amo.fullname" .)) }}
{{- end -}}

{{- define "amo.databaseKey" -}}
{{ ternary .Values.database.urlKey "url" (not (empty .Values.database.existingSecret)) }}
{{- end -}}

{{- define "amo.appSecret" -}}
{{ .Values.secrets.existingSecret | default (printf "%s-app" (include "amo.fullname" .)) }}
{{- end -}}

{{/* Two names: what the operator wrote is not Helm's, and Helm would not take it over. */}}
{{- define "amo.keyringSecret" -}}
{{- if .Values.operator.enabled -}}
{{ include "amo.fullname" . }}-keyring
{{- else -}}
{{ .Values.keyring.existingSecret | default (printf "%s-static-keyring" (include "amo.fullname" .)) }}
{{- end -}}
{{- end -}}
